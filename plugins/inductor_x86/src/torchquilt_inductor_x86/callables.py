"""A quantized model as a callable of this process, compiled when it is first called."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from torchquilt import LoweringError
from torchquilt_inductor_x86.canonical import canonicalize
from torchquilt_inductor_x86.compilation import OPTIONS, check_compiler
from torchquilt_inductor_x86.torch_private import settings


class Compiled:
    """A model that ``torch.compile`` compiles, with constants frozen and without gradients.

    Args:
        model: what is compiled.
        dynamic: as for ``torch.compile``.
    """

    def __init__(self, model: GraphModule, dynamic: bool | None) -> None:
        self.model = model
        self._function = torch.compile(model, dynamic=dynamic)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; the first call compiles it, and so does a call with sizes that are new to it."""
        with torch.no_grad(), settings(OPTIONS):  # Dynamo asks for them, too
            return self._function(*args, **kwargs)


def compiled(quantized: GraphModule | ExportedProgram | Any, *, dynamic: bool | None = None) -> Compiled:
    """Compile a quantized model for this process.

    The kernels are those of the package that :func:`torchquilt.lower` makes. Its state is that of the model.

    Args:
        quantized: what :func:`torchquilt.convert_pt2e` or :func:`torchquilt.load` returned, or an
            ExportedProgram. It is not changed, and shares its tensors with the result.
        dynamic: whether sizes that change are compiled for once, as ``torch.compile`` understands it. By
            default a size is dynamic from the second value on.

    Raises:
        LoweringError: it is something else, or there is no C++ compiler.
    """
    program = getattr(quantized, "program", quantized)  # of an Artifact
    if isinstance(program, ExportedProgram):
        model: Any = program.module(check_guards=False)
    elif isinstance(program, GraphModule):
        model = _copied(program)
    else:
        raise LoweringError(
            "This is no quantized model that can be compiled.",
            expected="what convert_pt2e or load returned, or an ExportedProgram",
            got=type(quantized).__name__,
            remedy="quantize it first: convert_pt2e(calibrate(prepare_pt2e(exported, quantizer), data))",
        )
    check_compiler()
    canonicalize(model)
    return Compiled(model, dynamic)


def _copied(model: GraphModule) -> GraphModule:
    """A model with a graph of its own, and the tensors of another."""
    graph = Graph()
    nodes: dict[Node, Node] = {}
    output = graph.graph_copy(model.graph, nodes)
    graph.output(output)
    for node, copied in nodes.items():
        copied.meta = dict(node.meta)
    graph._codegen = model.graph._codegen
    made = GraphModule(model, graph)
    made.meta = dict(model.meta)
    for guards in made.graph.find_nodes(op="call_module", target="_guards_fn"):
        made.graph.erase_node(guards)
    made.recompile()
    return made
