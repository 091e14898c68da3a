"""Making programs: what backends contribute, put together, each step with errors that name the operator."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchquilt import LoweringError
from torchquilt.backend import Contribution, Lowered
from torchquilt_executorch.failures import step
from torchquilt_executorch.known_noise import without_known_records
from torchquilt_executorch.options import merged

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchquilt_executorch.runner import ExecuTorchRunner

_VERSION = "executorch>=1.5.1"
#: What is left of quantize and dequantize outside of delegates has its kernels there.
QUANTIZED_KERNELS = "executorch.kernels.quantized"


class ExecuTorchTarget:
    """Lowers to ExecuTorch: each backend's partitioners hand its operators to their delegate."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program; see :class:`torchquilt.backend.Target`."""
        return self._lowered(program, contributions)

    def lower_what_runs(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program of which each delegate's part runs here; see ``TryingTarget``."""
        from torchquilt_executorch.part_runs import run_part

        libraries = [name for given in contributions.values() for name in given.libraries]
        return self._lowered(program, contributions, lambda part: run_part(part, libraries))

    def _lowered(
        self,
        program: ExportedProgram,
        contributions: Mapping[str, Contribution],
        run: Callable[[Any], None] | None = None,
    ) -> Lowered:
        import torch

        _require_executorch()
        from torchquilt.backend import Origins
        from torchquilt_executorch.delegation import Delegation
        from torchquilt_executorch.layouts import computed_contiguous
        from torchquilt_executorch.opened import Opened
        from torchquilt_executorch.signature import with_plain_signature
        from torchquilt_executorch.sizes import kept, narrowed_by, smallest_sizes
        from torchquilt_executorch.steps import Steps
        from torchquilt_executorch.stored import StoredProgram

        with without_known_records():
            importlib.import_module(QUANTIZED_KERNELS)
        for backend, given in contributions.items():
            for library in given.libraries:
                _import_library(library, backend)
        program = computed_contiguous(with_plain_signature(_after_passes(program, contributions)))
        origins = Origins.of_program(program)
        readers = {name: read for one in contributions.values() for name, read in one.readers.items()}
        # Passes of ExecuTorch run the graph, in which writing to a buffer is no matter for gradients.
        with without_known_records(), torch.no_grad(), kept():
            edge, withheld = Delegation(program, contributions, origins, run).to_edge()
            opened = Opened(edge.exported_program(), origins, readers)
            manager = _to_executorch(edge, program, contributions)
            buffer = bytes(manager.buffer)
            stored = StoredProgram.of(buffer)
            opened.settle(manager.exported_program(), Steps.of(manager.exported_program(), stored.plan))
        stored.check_is_harmless()
        smallest = smallest_sizes(edge.exported_program())
        with without_known_records():
            reasons = narrowed_by(program, stored, smallest)
        return Lowered(
            buffer=buffer,
            operations=opened.operations(withheld),
            conversions=opened.conversions(),
            delegates=stored.delegates,
            kernels=tuple(opened.kernels),
            operators=stored.operators,
            smallest_sizes=smallest,
            narrowed_by=reasons,
        )

    def open(self, buffer: bytes, libraries: Sequence[str]) -> ExecuTorchRunner:
        """Read a stored program; see :class:`torchquilt.backend.Target`."""
        _require_executorch()
        from torchquilt_executorch.runner import ExecuTorchRunner

        return ExecuTorchRunner(buffer, (QUANTIZED_KERNELS, *libraries))


def _require_executorch() -> None:
    try:
        with without_known_records():
            importlib.import_module("executorch.exir")
    except ImportError as error:
        raise LoweringError(
            "ExecuTorch cannot be imported.",
            expected=_VERSION,
            got=f"{type(error).__name__}: {error}",
            remedy=f"pip install '{_VERSION}'",
        ) from error


def _after_passes(program: ExportedProgram, contributions: Mapping[str, Contribution]) -> ExportedProgram:
    """The program after the passes that each backend contributes."""
    for backend, given in contributions.items():
        for transform in given.passes:
            with step(f"A pass of the backend {backend!r} failed.", program, backend):
                program = transform(program)
    return program


def _import_library(name: str, backend: str) -> None:
    try:
        with without_known_records():
            importlib.import_module(name)
    except Exception as error:  # it loads code of C++, which fails in any way it likes
        raise LoweringError(
            f"The kernel library {name} of the backend {backend!r} cannot be loaded.",
            backend=backend,
            expected="a module whose import registers the kernels",
            got=f"{type(error).__name__}: {error}",
            remedy=f"pip install '{_VERSION}', of the build that has it",
        ) from error


def _to_executorch(edge: Any, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Any:
    """The program as it is stored."""
    from executorch.exir import ExecutorchBackendConfig

    options = merged("options", contributions)
    with step("The program cannot be written for the runtime.", program):
        return edge.to_executorch(ExecutorchBackendConfig(**options))
