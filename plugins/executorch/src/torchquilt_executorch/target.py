"""Making programs: what backends contribute, put together, each step with errors that name the operator."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchquilt import LoweringError
from torchquilt.graph.bodies import nodes_of, regions
from torchquilt.lowering import Contribution, Lowered, place_of
from torchquilt_executorch.known_noise import without_known_records

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from torchquilt_executorch.runner import ExecuTorchRunner

_VERSION = "executorch>=1.5.1"
#: What is left of quantize and dequantize outside of delegates has its kernels there.
QUANTIZED_KERNELS = "executorch.kernels.quantized"
#: What ExecuTorch says → what that means.
_KNOWN = {
    "Missing out variants": "ExecuTorch has no kernel for an operator that writes to given memory "
    "(a missing out variant).",
    "is not in Core ATen opset": "ExecuTorch does not take an operator.",
    "is not Aten Canonical": "ExecuTorch does not take an operator.",
    "was not decomposed or delegated": "A partitioner had ExecuTorch keep an operator whole for its "
    "delegate, and left one. They do not look into the bodies of control flow.",
}
_REMEDY = (
    "write the model without the operator, register an out variant for it, or choose other backends: "
    "lower(..., backends=[...])"
)
#: What ExecuTorch says → what to do, where that is not what is to be done elsewhere.
_REMEDIES = {
    "was not decomposed or delegated": "take the operator out of the branch or loop, or lower without that "
    "partitioner: lower(..., backends=[...]); the body then runs in float",
}
_MOST_PLACES = 3


class ExecuTorchTarget:
    """Lowers to ExecuTorch: each backend's partitioners hand its operators to their delegate."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program; see :class:`torchquilt.lowering.Target`."""
        import torch

        _require_executorch()
        from torchquilt_executorch.opened import Opened
        from torchquilt_executorch.origins import Origins
        from torchquilt_executorch.stored import StoredProgram

        with without_known_records():
            importlib.import_module(QUANTIZED_KERNELS)
        for backend, given in contributions.items():
            for library in given.libraries:
                _import_library(library, backend)
        for backend, given in contributions.items():
            for transform in given.passes:
                with _step(f"A pass of the backend {backend!r} failed.", program, backend):
                    program = transform(program)
        origins = Origins.of_program(program)
        readers = {name: read for one in contributions.values() for name, read in one.readers.items()}
        # Passes of ExecuTorch run the graph, in which writing to a buffer is no matter for gradients.
        with without_known_records(), torch.no_grad():
            edge = _to_edge(program, contributions)
            opened = Opened(edge.exported_program(), origins, readers)
            manager = _to_executorch(edge, program, contributions)
            opened.settle(manager.exported_program())
        buffer = bytes(manager.buffer)
        stored = StoredProgram.of(buffer)
        stored.check_is_harmless()
        return Lowered(
            buffer=buffer,
            operations=opened.operations(),
            conversions=opened.conversions(),
            delegates=stored.delegates,
            kernels=tuple(opened.kernels),
            operators=stored.operators,
        )

    def open(self, buffer: bytes, libraries: Sequence[str]) -> ExecuTorchRunner:
        """Read a stored program; see :class:`torchquilt.lowering.Target`."""
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


def _to_edge(program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Any:
    """The program in ExecuTorch's dialect, with the delegates cut out."""
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    options = _merged("edge_options", contributions)
    with _step("The program cannot be brought to ExecuTorch's dialect, or be delegated.", program):
        partitioners = [one for given in contributions.values() for one in given.partitioners()]
        passes = [one for given in contributions.values() for one in given.edge_passes()]
        return to_edge_transform_and_lower(
            program,
            transform_passes=passes or None,
            partitioner=partitioners,
            compile_config=EdgeCompileConfig(**options),
        )


def _to_executorch(edge: Any, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Any:
    """The program as it is stored."""
    from executorch.exir import ExecutorchBackendConfig

    options = _merged("options", contributions)
    with _step("The program cannot be written for the runtime.", program):
        return edge.to_executorch(ExecutorchBackendConfig(**options))


def _merged(field: str, contributions: Mapping[str, Contribution]) -> dict[str, Any]:
    """The options of all backends.

    Raises:
        LoweringError: two of them ask for different values.
    """
    found: dict[str, tuple[str, Any]] = {}
    for backend, given in contributions.items():
        for name, value in getattr(given, field).items():
            first, other = found.setdefault(name, (backend, value))
            if other != value:
                raise LoweringError(
                    f"Two backends ask for different values of ExecuTorch's option {name!r}.",
                    backend=f"{first} and {backend}",
                    expected=f"{other!r}, which {first} asks for",
                    got=f"{value!r}, which {backend} asks for",
                    remedy="lower what they quantize separately: backends=[...]",
                )
    return {name: value for name, (_, value) in found.items()}


@contextlib.contextmanager
def _step(problem: str, program: ExportedProgram, backend: str | None = None) -> Iterator[None]:
    """Have what goes wrong in a step say which operators of the model it is about."""
    try:
        yield
    except LoweringError:
        raise
    except Exception as error:  # ExecuTorch raises RuntimeError, InternalError, ExportError, ...
        first = (str(error).strip() or repr(error)).partition("\n")[0]
        places = [*dict.fromkeys(place_of(node, name) for name, node in _named_in(first, program))]
        remedy = next((told for part, told in _REMEDIES.items() if part in first), _REMEDY)
        raise LoweringError(
            next((told for part, told in _KNOWN.items() if part in first), problem),
            backend=backend,
            node="; ".join([*places[:_MOST_PLACES], *(["…"] if places[_MOST_PLACES:] else [])]) or None,
            expected="operators that ExecuTorch, or a delegate, has kernels for" if places else None,
            got=f"{type(error).__name__}: {first}",
            remedy=remedy if places else "see the cause above",
        ) from error


def _named_in(message: str, program: ExportedProgram) -> list[tuple[str, Node]]:
    """The nodes of a program whose operator a message of ExecuTorch names, each with its name in the program.

    It may be one that another operator is decomposed into; then the node is that of the other one.
    """
    nodes = {
        region.name_of(node): node
        for region in regions(program.graph_module)
        for node in region.module.graph.nodes
    }
    named = [(name, node) for name, node in nodes.items() if _is_named(node, message)]
    if named:
        return named
    from torchquilt_executorch.origins import Origins

    origins = Origins.of_program(program)
    try:
        decomposed = program.run_decompositions()
    except Exception:  # then it cannot be said
        return []
    later = (node for node in nodes_of(decomposed.graph_module) if _is_named(node, message))
    return [(name, nodes[name]) for name in map(origins.of, later) if name]


def _is_named(node: Node, message: str) -> bool:
    """Whether a message has the operator that a node calls, as ``aten.sort`` or ``aten::sort``."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    if schema is None:
        return False
    name = re.escape(schema.name).replace("::", "(::|[.]|_)")
    overload = schema.overload_name or "default"
    # aten::sort, aten.sort, or the name that a node has in ExecuTorch's dialect: aten_sort_default_1.
    return re.search(rf"(?<!\w){name}(_{overload}(_\d+)?)?(?!\w)", message, re.IGNORECASE) is not None
