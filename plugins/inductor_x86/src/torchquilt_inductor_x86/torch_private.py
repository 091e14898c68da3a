"""Private API of torch that this plugin needs, in one module, so that an upgrade of torch is one file.

torch's own settings take functions that see a graph on its way: behind the fusion passes
(``post_grad_custom_post_pass``), and as kernels once they are fused (``_post_fusion_custom_pass``). Both are
set for one compilation, so nothing of torch is changed for others.
"""

from __future__ import annotations

import io
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule, Node

T = TypeVar("T")

#: A call of a kernel in the generated program: its name, and the lines up to the end of its block.
_CALL = re.compile(r'KernelContextGuard _ctx\("(\w+)".*?\)"\);\n(.*?)\n *\}', re.DOTALL)
#: What it writes: a tensor that it makes, memory that a loop is given, the first argument.
_WRITTEN = (
    re.compile(r"&(\w+)_handle\b"),
    re.compile(r"\((?!const )[\w:]+\*\)\((\w+)\.data_ptr"),
    re.compile(r"CHECK\(\w+\((\w+)"),
)
#: Before the name of a generated loop stands the number of its graph, where times are told.
_OF_GRAPH = re.compile(r"^graph_\d+_")

#: The pass that notes of which node of an exported program a node was made.
_UNLIFTED = "ExportedProgram.module()"


def compile_package(
    model: GraphModule,
    arguments: tuple[Any, Any],
    options: Mapping[str, Any],
    read: Callable[[Sequence[Any]], Iterable[T]],
) -> tuple[bytes, tuple[T, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Compile a model into an AOTInductor package whose kernels tell their times to torch's profiler.

    Args:
        model: as ``ExportedProgram.module()`` makes it. Its nodes forget the lines of code that they are of,
            which would be part of the package.
        arguments: of a call, those by position and those by name.
        options: settings of Inductor.
        read: makes facts of the kernels of a graph, once they are fused.

    Returns:
        The package, the facts, and the calls of kernels in order, each with the buffers that it writes.
    """
    from torch._inductor import aot_compile
    from torch.export.pt2_archive._package import package_pt2

    facts: list[T] = []

    def seen(kernels: Sequence[Any]) -> Sequence[Any]:
        facts.extend(read(kernels))
        return kernels

    for node in model.graph.nodes:
        node.meta.pop("stack_trace", None)
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and not is_dense(value):
            node.meta["val"] = value.contiguous()
    own = {"aot_inductor.package": True, "cpp.enable_kernel_profile": True, "_post_fusion_custom_pass": seen}
    args, kwargs = arguments
    with torch.no_grad():
        files: Any = aot_compile(model, args, kwargs, options={**options, **own})
    stored = io.BytesIO()
    package_pt2(stored, aoti_files=files)
    calls = [
        call
        for file in files
        if str(file).endswith(".wrapper.cpp")
        for call in calls_in(Path(file).read_text(encoding="utf-8"))
    ]
    return stored.getvalue(), tuple(facts), tuple(calls)


def is_dense(value: torch.Tensor) -> bool:
    """Whether a tensor, whose sizes may be unknown, is known to lie without gaps and overlaps."""
    from torch._prims_common import is_non_overlapping_and_dense_or_false

    return bool(is_non_overlapping_and_dense_or_false(value))


def calls_in(code: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The calls of kernels in a generated program, in order: name, and the buffers that it writes."""
    for name, block in _CALL.findall(code):
        found = (pattern.findall(block) for pattern in _WRITTEN)
        yield name, tuple(next((names for names in found if names), ()))


def kernel_of_event(name: str) -> str:
    """The kernel that an event of torch's profiler is about, as :func:`calls_in` names it."""
    return _OF_GRAPH.sub("", name)


def settings(options: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Settings of Inductor, for a block."""
    from torch._inductor import config

    found: AbstractContextManager[None] = config.patch(dict(options))
    return found


def load_package(buffer: bytes) -> Any:
    """The loader of a package, which runs its code."""
    from torch._inductor import aoti_load_package

    return aoti_load_package(io.BytesIO(buffer)).loader


def check_compiler() -> str:
    """The C++ compiler that Inductor calls.

    Raises:
        RuntimeError: there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    return str(get_cpp_compiler())


def is_contiguous(value: torch.Tensor) -> bool:
    """Whether a tensor, whose sizes may be unknown, is known to lie row by row."""
    from torch._prims_common import is_contiguous_or_false

    return bool(is_contiguous_or_false(value))


def source_name(node: Node) -> str:
    """The node of the exported program that a later node was made of, empty where torch did not note it."""
    sources = node.meta.get("from_node") or []
    while sources:
        last = sources[-1]
        if last.pass_name == _UNLIFTED:
            return str(last.name)
        sources = last.from_node
    return ""


def blamed(error: BaseException) -> str:
    """The node of the exported program that an error of Inductor is about, empty where it is not known.

    Inductor runs a graph node by node; the innermost frame that does so has the node.
    """
    found = ""
    current: BaseException | None = error
    while current is not None:
        for frame, _ in traceback.walk_tb(current.__traceback__):
            node = frame.f_locals.get("n") if frame.f_code.co_name == "run_node" else None
            if isinstance(node, Node):
                found = source_name(node) or found
        current = current.__cause__ or current.__context__
    return found


def steps_of(kernels: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Each kernel with its name and the operations that are fused in it."""
    for kernel in kernels:
        yield str(kernel.get_name()), kernel.get_nodes()


def operation_of(step: Any) -> Any:
    """The operation of Inductor's IR that a scheduled node computes; None where it computes nothing."""
    return getattr(step, "node", None)


def called_kernel(operation: Any) -> str:
    """The kernel that an operation calls (``onednn.qconv_pointwise.tensor``), empty for a generated loop."""
    from torch._inductor.ir import ExternKernel

    if not isinstance(operation, ExternKernel):
        return ""
    overload = getattr(operation, "op_overload", None)
    return str(overload or getattr(operation, "python_kernel_name", None) or type(operation).__name__)


def is_output_of_kernel(operation: Any) -> bool:
    """Whether an operation only takes one of the outputs of a kernel."""
    from torch._inductor.ir import MultiOutput

    return isinstance(operation, MultiOutput)


def origins_of(operation: Any) -> list[Node]:
    """The nodes of the graph that an operation computes: first its own, then those that are inlined."""
    return list(operation.origins or ())


def buffers_of(scheduled: Any) -> tuple[str, ...]:
    """The names of the buffers that a scheduled node writes."""
    return tuple(scheduled.get_buffer_names())


def kernel_that_makes(operation: Any) -> str:
    """The name of the operation whose outputs one of :func:`is_output_of_kernel` is among."""
    return str(operation.inputs[0].get_name())


def read_dtypes(scheduled: Any) -> tuple[torch.dtype, ...]:
    """The dtypes of the tensors that a scheduled node reads, as far as they are known."""
    from torch._inductor.virtualized import V

    found = (V.graph.try_get_buffer(dependency.name) for dependency in scheduled.read_writes.reads)
    dtypes = (buffer.maybe_get_dtype() for buffer in found if buffer is not None)
    return tuple(dtype for dtype in dtypes if dtype is not None)


def written_dtype(operation: Any) -> torch.dtype | None:
    """The dtype of the tensor that an operation writes; None where it writes several, or in place."""
    found: torch.dtype | None = operation.maybe_get_dtype()
    return found
