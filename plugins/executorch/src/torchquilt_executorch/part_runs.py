"""Running what a delegate compiled by itself, to see whether the runtime takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchquilt_executorch.runner import ExecuTorchRunner


def run_part(part: Any, libraries: Sequence[str]) -> None:
    """Load a part into the runtime and run it on random numbers.

    Args:
        part: ExecuTorch's ``LoweredBackendModule``.
        libraries: modules that may have kernels that it needs.

    Raises:
        ProgramError: the runtime does not take it.
    """
    program = part.original_module
    names = {*program.graph_signature.user_inputs}
    inputs = [node.meta["val"] for node in program.graph.find_nodes(op="placeholder") if node.name in names]
    # The same in each run, so that what is refused once is refused again.
    generator = torch.Generator().manual_seed(0)
    ExecuTorchRunner(part.buffer(), libraries).run([_example(value, generator) for value in inputs])


def _example(value: Any, generator: torch.Generator) -> Any:
    """A value as an input has it: of the sizes that the model was exported with."""
    if not isinstance(value, torch.Tensor):
        return int(_hint(value)) if isinstance(value, torch.SymInt) else value
    sizes = [_hint(size) for size in value.shape]
    if value.dtype.is_floating_point:
        return torch.randn(sizes, dtype=value.dtype, generator=generator)
    return torch.randint(0, 2, sizes, dtype=value.dtype, generator=generator)


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size
