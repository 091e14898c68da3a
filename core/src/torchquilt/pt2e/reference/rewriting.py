"""A converted model in integer arithmetic, and what of it stays in float."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.errors import ModelError
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.edits import copy_model, drop_unused_tensors
from torchquilt.graph.node_values import overload_name
from torchquilt.graph.passes import Pass, everywhere, run_passes
from torchquilt.graph.qdq import is_dequantize
from torchquilt.graph.subgraph_constants import close_subgraphs, open_subgraphs
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.reference.rules import RULE_OF
from torchquilt.pt2e.reference.sites import Site
from torchquilt.support.pattern import Reject


def to_reference(model: GraphModule) -> GraphModule:
    """Rewrite dequantize → operator → quantize into operators on the integers themselves.

    Accumulators are int32 as in hardware (int64 where a sum could leave int32, and in dilated and
    transposed convolutions, for which torch has no int32 kernel). A bias is an integer in steps of the
    accumulator. An accumulator is rescaled for the output by one multiplication in float32, rounded half
    to even; additions are in fixed point. These are XNNPACK's formulas for 8 bits, so that integer outputs
    differ from its own by at most one. What is quantized dynamically, or only in its weight where the
    operator is an embedding, is computed from integers and given in float.

    Args:
        model: what :func:`torchquilt.convert_pt2e` returned. It stays as it was.

    Returns:
        A copy with the same inputs and outputs, that shares its tensors where they are the same. Operators
        that no rule takes read and give float as before; :func:`left_in_float` says why.

    Raises:
        ModelError: the model is not a converted one.
    """
    if stage_of(model) != "converted":
        raise ModelError(
            "Only a converted model has a reference representation.",
            expected="what convert_pt2e returned",
            got=stage_in_words(model),
            remedy="prepare_pt2e, calibrate, then convert_pt2e(prepared, use_reference_representation=True)",
        )
    with default_global_state():
        rewritten = run_passes(copy_model(model), _PASSES)
        generate_code(rewritten)
    return rewritten


def _use_integers(model: GraphModule) -> GraphModule:
    """Let every rule rewrite what it finds in one region."""
    for node in list(model.graph.nodes):
        rule = None if node._erased else RULE_OF.get(overload_name(node))
        site = rule.find(model, node) if rule is not None else None
        if rule is not None and isinstance(site, Site):
            rule.rewrite(site)
    return model


def _drop_unused(model: GraphModule) -> GraphModule:
    """Forget what was stored for the operators that are gone."""
    drop_unused_tensors(model)
    outdate(model)
    return model


# In the subgraphs of control flow, too, which have to hold their weights while rules look for them.
_PASSES = (
    Pass("close_subgraphs", close_subgraphs),
    everywhere("use_integers", _use_integers),
    Pass("open_subgraphs", open_subgraphs),
    Pass("drop_unused", _drop_unused),
)


def left_in_float(model: GraphModule) -> dict[Node, Reject]:
    """Reasons for which operators of a model that read dequantized tensors are not in integer arithmetic.

    Tells of the outermost graph: in the subgraphs of control flow weights are inputs like any others.

    Args:
        model: what :func:`to_reference` returned. Of a converted model, only what no rule takes is told.
    """
    found: dict[Node, Reject] = {}
    for node in model.graph.nodes:
        if node.op != "call_function" or not any(map(is_dequantize, node.all_input_nodes)):
            continue
        rule = RULE_OF.get(overload_name(node))
        answer = rule.find(model, node) if rule is not None else None
        if answer is None:
            answer = Reject("no_rule", (node,), f"there is no integer arithmetic for {node.target}")
        if isinstance(answer, Reject):
            found[node] = answer
    return found
