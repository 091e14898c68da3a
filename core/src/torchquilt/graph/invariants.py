"""Invariants of every graph between two passes, as a table of rules.

The tests check the table after every pass (:func:`checking_invariants`). A rule that does not hold is a
mistake of a pass, or of a quantizer that rewrites graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt.errors import ModelError
from torchquilt.graph.node_values import attribute, tensor_of
from torchquilt.graph.passes import watching
from torchquilt.graph.provenance import is_call
from torchquilt.graph.qdq import qdq_of
from torchquilt.graph.subgraphs import OPERATORS, Region, call_of, regions, subgraph_of


@attrs.frozen
class Invariant:
    """One rule about every node.

    Args:
        name: short name, for errors.
        text: what holds, in one sentence.
        trouble: what of it does not hold for a node of a region; empty where it holds.
    """

    name: str
    text: str
    trouble: Callable[[Node, Region], str]


def check_invariants(
    model: GraphModule,
    after: str,
    nodes: Container[Node] | None = None,
    invariants: tuple[Invariant, ...] | None = None,
) -> None:
    """Check every rule at every node of the model and of the subgraphs in it.

    Args:
        model: only read.
        after: the name of the pass that returned it, for the error.
        nodes: check only these.
        invariants: the rules; those of this module by default.

    Raises:
        ModelError: a rule does not hold; names the rule, the pass and the node.
    """
    for region in regions(model):
        earlier: set[Node] = set()
        for node in region.module.graph.nodes:
            earlier.add(node)
            if nodes is not None and node not in nodes:
                continue
            late = [source.name for source in node.all_input_nodes if source not in earlier]
            if late:
                raise _broken("order", "a node is read only after it", node, region, after, ", ".join(late))
            for invariant in INVARIANTS if invariants is None else invariants:
                trouble = invariant.trouble(node, region)
                if trouble:
                    raise _broken(invariant.name, invariant.text, node, region, after, trouble)


@contextmanager
def checking_invariants(invariants: tuple[Invariant, ...] | None = None) -> Iterator[None]:
    """Check the invariants, those of this module by default, after every pass that is run in here."""
    with watching(lambda name, model: check_invariants(model, name, invariants=invariants)):
        yield


def _broken(name: str, text: str, node: Node, region: Region, after: str, trouble: str) -> ModelError:
    return ModelError(
        f"The invariant {name!r} does not hold after the pass {after!r}.",
        node=f"{region.name_of(node)}: {node.format_node()}",
        expected=text,
        got=trouble,
        remedy="a quantizer that rewrites graphs has to keep it; otherwise report this as a bug",
    )


def _reads_subgraph(node: Node) -> bool:
    return node.op == "get_attr" and hasattr(subgraph_of(node), "graph")


def _without_value(node: Node, _: Region) -> str:
    has_one = (
        node.op != "output" and not _reads_subgraph(node) and (node.op != "call_module" or is_call(node))
    )
    return "no val" if has_one and "val" not in node.meta else ""


def _without_origin(node: Node, _: Region) -> str:
    return "" if node.op == "output" or node.meta.get("from_node") else "no from_node"


def _without_scope(node: Node, _: Region) -> str:
    missing = [key for key in ("nn_module_stack", "stack_trace") if key not in node.meta]
    return f"no {' and no '.join(missing)}" if is_call(node) and missing else ""


def _missing_attribute(node: Node, region: Region) -> str:
    if node.op not in ("get_attr", "call_module"):
        return ""
    try:
        held = attribute(region.module, str(node.target))
    except AttributeError:
        return f"the model has no {node.target}"
    value = tensor_of(node)
    if isinstance(held, torch.Tensor) and value is not None:
        stored, recorded = (held.dtype, tuple(held.shape)), (value.dtype, tuple(value.shape))
        return "" if stored == recorded else f"stored {stored}, recorded {recorded}"
    return ""


def _wrong_integers(node: Node, _: Region) -> str:
    """A quantize operator returns what its dtype says, and a dequantize operator takes that."""
    told = qdq_of(node)
    if told is None:
        return ""
    value = tensor_of(node if told.is_quantize else told.input)
    found = None if value is None else value.dtype
    return "" if found == told.dtype else f"{found} instead of {told.dtype}"


def _wrong_number_of_operands(node: Node, _: Region) -> str:
    """A known higher-order operator hands in as much as its subgraphs take."""
    is_higher_order = getattr(node.target, "namespace", None) == "higher_order"
    if node.op != "call_function" or not is_higher_order or str(node.target) not in OPERATORS:
        return ""
    return "" if call_of(node) is not None else "the operands are not the placeholders of the subgraphs"


#: Every rule, in the order in which they are checked.
INVARIANTS = (
    Invariant("attribute", "what a node reads or calls is there, with the recorded type", _missing_attribute),
    Invariant("val", "a node with a value has it recorded", _without_value),
    Invariant("from_node", "a node says what it was made from", _without_origin),
    Invariant("scope", "a call has nn_module_stack and stack_trace", _without_scope),
    Invariant("integers", "quantize returns and dequantize takes the dtype in question", _wrong_integers),
    Invariant("operands", "a subgraph is handed what it takes", _wrong_number_of_operands),
)
