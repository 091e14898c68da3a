"""Private API of torch that this plugin needs, in one module, so that an upgrade of torch is one file.

torch's own settings take functions that see a graph on its way: behind the fusion passes
(``post_grad_custom_post_pass``), and as kernels once they are fused (``_post_fusion_custom_pass``). Both are
set for one compilation, so nothing of torch is changed for others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

#: The pass that notes of which node of an exported program a node was made.
_UNLIFTED = "ExportedProgram.module()"


def compile_package(
    model: GraphModule, args: tuple[Any, ...], options: dict[str, Any], see: Callable[[Sequence[Any]], None]
) -> bytes:
    """Compile a model into an AOTInductor package.

    Args:
        model: as ``ExportedProgram.module()`` makes it.
        args: inputs, in its structure.
        options: settings of Inductor.
        see: is shown the kernels of each graph, once they are fused.
    """
    from torch._inductor import aot_compile
    from torch._inductor.package import package_aoti

    def seen(kernels: Sequence[Any]) -> Sequence[Any]:
        see(kernels)
        return kernels

    options = {**options, "aot_inductor.package": True, "_post_fusion_custom_pass": seen}
    positional, named = args
    with torch.no_grad():
        files = aot_compile(model, positional, named, options=options)
    stored = io.BytesIO()
    package_aoti(stored, files)
    return stored.getvalue()


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


def source_name(node: Node) -> str:
    """The node of the exported program that a later node was made of, empty where torch did not note it."""
    sources = node.meta.get("from_node") or []
    while sources:
        last = sources[-1]
        if last.pass_name == _UNLIFTED:
            return str(last.name)
        sources = last.from_node
    return ""


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


def read_dtypes(scheduled: Any) -> tuple[torch.dtype, ...]:
    """The dtypes of the tensors that a scheduled node reads, as far as they are known."""
    from torch._inductor.virtualized import V

    found = []
    for dependency in scheduled.read_writes.reads:
        try:
            found.append(V.graph.get_dtype(dependency.name))
        except (KeyError, AttributeError):  # a tensor of the caller's
            continue
    return tuple(found)


def written_dtype(operation: Any) -> torch.dtype | None:
    """The dtype of the tensor that an operation writes; None where it writes several."""
    try:
        found: torch.dtype = operation.get_dtype()
    except (AttributeError, NotImplementedError):
        return None
    return found
