"""Provenance of nodes: fill in what export left out from what is around a node.

Everything behind this can rely on it: each node has ``val`` (where it has a value) and ``from_node``; each
input and each call has ``nn_module_stack`` and ``stack_trace``, in the subgraphs of control flow as well.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.traceback import NodeSource, NodeSourceAction

from torchquilt.graph.subgraphs import Region, name_operands, regions

#: Strict export traces subgraphs below a module of this name, which stands for the model itself.
_STRICT_ROOT = "_export_root"


def complete_provenance(model: GraphModule) -> GraphModule:
    """Fill in what export left out; changes only the metadata of ``model``.

    In subgraphs non-strict export records no modules. A node there is taken to come from where its subgraph
    is called, or from the module inside of that whose parameters it reads; the class of that is not known.
    """
    stored: dict[Node, str] = {}  # what reads or stands for a stored tensor → the name of the tensor
    for region in regions(model):
        name_operands(region, stored)
        for node in region.module.graph.nodes:
            if node.op == "get_attr":
                stored[node] = str(node.target)
            if node.op != "output":
                _complete(node, region, stored)
    return model


def is_call(node: Node) -> bool:
    """Whether a node computes something: an operator, or a module other than the guards of the inputs."""
    return node.op == "call_function" or (node.op == "call_module" and bool(node.users))


def _complete(node: Node, region: Region, stored: dict[Node, str]) -> None:
    if not node.meta.get("from_node"):
        node.meta["from_node"] = [NodeSource(node, "torch.export", NodeSourceAction.CREATE)]
    if node.op == "get_attr":
        return  # who reads a stored tensor says where it is used
    caller = region.caller
    around: dict[str, Any] = caller.meta.get("nn_module_stack", {}) if caller is not None else {}
    stack = _without_strict_root(node.meta.get("nn_module_stack") or {})
    node.meta["nn_module_stack"] = stack or _with_owner(dict(around), node, stored)
    if not node.meta.get("stack_trace"):
        node.meta["stack_trace"] = str(caller.meta.get("stack_trace", "")) if caller is not None else ""


def _without_strict_root(stack: dict[str, Any]) -> dict[str, Any]:
    """A module stack with the paths of the model, where strict export put a module of its own on top."""
    return {
        key: (path.removeprefix(_STRICT_ROOT).removeprefix("."), kind)
        for key, (path, kind) in stack.items()
        if path != _STRICT_ROOT
    }


def _with_owner(stack: dict[str, Any], node: Node, stored: dict[Node, str]) -> dict[str, Any]:
    """A module stack and the module whose parameters a node reads, if that is inside the innermost one."""
    innermost = [*stack.values()][-1][0] if stack else ""
    owners = [stored[source].rpartition(".")[0] for source in node.all_input_nodes if source in stored]
    inside = [owner for owner in owners if owner and owner.startswith(innermost and f"{innermost}.")]
    if inside:
        owner = max(inside, key=len)
        stack[owner] = (owner, "")
    return stack
