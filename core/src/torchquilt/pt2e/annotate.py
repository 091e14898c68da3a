"""The first half of prepare: everything that is decided about a model, and nothing that is inserted.

:func:`explain` stops here; :func:`torchquilt.prepare_pt2e` goes on from here. So what is explained is
what is done.
"""

from __future__ import annotations

import warnings

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt.annotation import annotation_of, check_annotation
from torchquilt.compose import ComposableQuantizer
from torchquilt.errors import AnnotationError, ModelError, TorchquiltError
from torchquilt.graph.batch_norm import fold_batch_norm
from torchquilt.graph.constants import simplify_constants
from torchquilt.graph.cost import multiply_adds, stored_tensors
from torchquilt.graph.decomposition import decomposed_from, explanation
from torchquilt.graph.edits import copy_model
from torchquilt.graph.in_place import make_functional
from torchquilt.graph.scope import module_path
from torchquilt.graph.values import constant_nodes, is_float_tensor, is_overwritten, overload_name, tensor_of
from torchquilt.ledger import Boundary, Ledger, Reason, Row, Tensor
from torchquilt.pattern import Reject
from torchquilt.pt2e.groups import Group, find_groups
from torchquilt.pt2e.stage import stage_of
from torchquilt.quantizers import Quantizer, as_quantizer
from torchquilt.spec import EdgeOrNode


@attrs.frozen(eq=False)
class Annotated:
    """A copy of the user's model with everything decided, and the record of it.

    Args:
        model: the copy, folded and transformed, with annotations.
        quantizer: who decided.
        groups: the tensors with one set of parameters.
        ledger: every decision.
    """

    model: GraphModule
    quantizer: Quantizer
    groups: tuple[Group, ...]
    ledger: Ledger


def explain(model: ExportedProgram | GraphModule, quantizer: object, *, strict: bool = True) -> Ledger:
    """Say what :func:`torchquilt.prepare_pt2e` would decide, for every operator, and why not.

    Args:
        model: as for :func:`torchquilt.prepare_pt2e`; nothing of it is changed.
        quantizer: likewise.
        strict: raise for rules that cannot take effect; with False they are warnings, and
            ``ledger.problems``.

    Raises:
        As :func:`torchquilt.prepare_pt2e`.
    """
    return annotate_copy(model, quantizer, strict=strict).ledger


def annotate_copy(
    model: ExportedProgram | GraphModule, quantizer: object, *, strict: bool = True
) -> Annotated:
    """Copy a model, fold and transform it, let the quantizer decide, and check what it decided."""
    decider = as_quantizer(quantizer)
    signed = ComposableQuantizer([decider])  # sees to it that every annotation says who made it
    copy = _own_copy(model)
    problems = [*signed.rule_problems(copy)]
    _complain(problems, strict)
    copy = fold_batch_norm(simplify_constants(make_functional(copy)))
    copy = signed.transform_for_annotation(copy)
    signed.annotate(copy)
    _check_annotations(copy)
    outcome = signed.outcome_problems(copy)
    _complain(outcome, strict)
    signed.validate(copy)
    groups = find_groups(copy.graph)
    texts = tuple(str(problem) for problem in (*problems, *outcome))
    return Annotated(copy, decider, groups, make_ledger(copy, signed, groups, texts))


def _own_copy(model: object) -> GraphModule:
    """A graph module that may be changed, of a model that may not."""
    if isinstance(model, ExportedProgram):
        model = model.module()
    if not isinstance(model, GraphModule):
        raise ModelError(
            "Only an exported model can be prepared.",
            expected="a torch.export.ExportedProgram, or its .module()",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            remedy="export it first: torch.export.export(model.eval(), example_inputs)",
        )
    stage = stage_of(model)
    if stage is not None:
        raise ModelError(
            f"This model has been {stage} already.",
            expected="a float model as torch.export gave it",
            got=f"a {stage} model",
            remedy="prepare the exported float model again; it was not changed by preparing it",
        )
    _check_is_exported(model)
    for node in model.graph.nodes:
        if _is_in_training_mode(node):
            raise ModelError(
                "This model was exported in training mode.",
                node=node,
                expected="a model in evaluation mode",
                got=node.format_node(),
                remedy="call model.eval() before torch.export.export",
            )
    return copy_model(model)


def _is_in_training_mode(node: Node) -> bool:
    name = overload_name(node)
    if name in ("aten.dropout.default", "aten.dropout_.default"):
        return bool(node.args[2]) and bool(node.args[1])
    # Without running statistics a BatchNorm takes those of the batch in evaluation mode, too.
    return name == "aten.batch_norm.default" and bool(node.args[5]) and node.args[3] is not None


def _check_is_exported(model: GraphModule) -> None:
    """Refuse graphs of another making: not recorded with shapes, or with the weights as inputs."""
    inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
    has_pytree = isinstance(model.graph._codegen, torch.fx.graph._PyTreeCodeGen)
    if not has_pytree and any(str(node.target).startswith("p_") for node in inputs):
        raise ModelError(
            "This is the graph inside of an exported program, which takes the weights as inputs.",
            expected="the ExportedProgram, or its .module()",
            got=f"exported.graph_module, with the inputs {', '.join(str(node.target) for node in inputs)}",
            remedy="hand in the ExportedProgram itself, or exported.module()",
        )
    if any(overload_name(node).startswith("quantized_decomposed.") for node in model.graph.nodes):
        raise ModelError(
            "This model is quantized already.",
            expected="a float model as torch.export gave it",
            got="a graph with quantized_decomposed operators",
            remedy="prepare the exported float model",
        )
    if any("val" not in node.meta for node in inputs):
        raise ModelError(
            "This graph was not recorded by torch.export: its inputs have no shapes.",
            expected="a torch.export.ExportedProgram, or its .module()",
            got=f"a {type(model).__name__} whose inputs have no recorded value",
            remedy="export the model: torch.export.export(model.eval(), example_inputs)",
        )


def _complain(problems: list[TorchquiltError] | tuple[TorchquiltError, ...], strict: bool) -> None:
    """Raise the first problem, or warn of each."""
    if problems and strict:
        raise problems[0]
    for problem in problems:
        warnings.warn(str(problem), stacklevel=4)


def _check_annotations(model: GraphModule) -> None:
    """Annotations fit their nodes, and only floating point tensors are quantized."""
    for node in model.graph.nodes:
        annotation = annotation_of(node)
        if annotation is None:
            continue
        check_annotation(node, annotation)
        quantized = [producer for producer, spec in annotation.input_qspec_map.items() if spec is not None]
        for tensor in (*quantized, *((node,) if annotation.output_qspec is not None else ())):
            trouble = _why_not_quantizable(tensor)
            if trouble:
                raise AnnotationError(
                    f"{tensor.name} cannot be quantized: {trouble}.",
                    node=node,
                    quantizer=annotation.quantizer or None,
                    expected="a float32, float16 or bfloat16 tensor that nothing writes into",
                    got=tensor.meta.get("val"),
                    remedy="annotate only edges that carry such tensors",
                )


def _why_not_quantizable(tensor: Node) -> str:
    """What keeps a tensor from being quantized, empty where nothing does."""
    value = tensor_of(tensor)
    if value is not None and value.dtype is torch.float64:
        return "the quantized_decomposed operators do not take float64"
    if not is_float_tensor(tensor):
        return "it is not a floating point tensor"
    if is_overwritten(tensor):
        return "the model writes into it, and would write into a copy"
    return ""


def make_ledger(
    model: GraphModule, quantizer: Quantizer, groups: tuple[Group, ...], problems: tuple[str, ...] = ()
) -> Ledger:
    """The ledger of an annotated model."""
    group_of = {place: number for number, group in enumerate(groups) for place in group.places}
    why_not = quantizer.rejections(model)
    constants = constant_nodes(model.graph)
    rows = tuple(
        _row(node, groups, group_of, why_not.get(node, ()), constants)
        for node in model.graph.nodes
        if node.op == "call_function"
    )
    return Ledger(rows, _boundaries(model, groups, group_of), problems)


def _row(
    node: Node,
    groups: tuple[Group, ...],
    group_of: dict[EdgeOrNode, int],
    rejected: tuple[tuple[str, Reject], ...],
    constants: frozenset[Node],
) -> Row:
    annotation = annotation_of(node)
    places: list[tuple[str, EdgeOrNode]] = [(f"input {n.name}", (n, node)) for n in node.all_input_nodes]
    places.append(("output", node))
    tensors = tuple(
        Tensor(name, str(groups[group_of[place]].spec), group_of[place])
        for name, place in places
        if place in group_of
    )
    reasons = tuple(Reason(quantizer, reject.code, reject.text) for quantizer, reject in rejected)
    if annotation is None and not reasons:
        reasons = (_unknown_operator(node),)
    return Row(
        node=node.name,
        op=overload_name(node) or str(node.target),
        module=module_path(node),
        quantizer=annotation.quantizer if annotation else None,
        pattern=annotation.pattern if annotation else "",
        rule=annotation.rule if annotation else "",
        tensors=tensors,
        reasons=() if annotation else reasons,
        macs=multiply_adds(node),
        parameters=stored_tensors(node, constants),
    )


def _unknown_operator(node: Node) -> Reason:
    """Why a node stays in float that no quantizer says anything about."""
    if decomposed_from(node):
        return Reason("", "decomposed", explanation(node))
    operator = overload_name(node) or str(node.target)
    return Reason("", "unsupported_op", f"no quantizer here has a row for {operator}")


def _boundaries(
    model: GraphModule, groups: tuple[Group, ...], group_of: dict[EdgeOrNode, int]
) -> tuple[Boundary, ...]:
    """The edges at which a tensor that is quantized already is quantized anew."""
    found = []
    for place, group in group_of.items():
        if not isinstance(place, tuple) or group_of.get(place[0], group) == group:
            continue
        producer, user = place
        made, used = annotation_of(producer), annotation_of(user)
        assert made is not None
        assert used is not None
        found.append(
            Boundary(
                producer.name,
                user.name,
                made.quantizer,
                str(groups[group_of[producer]].spec),
                used.quantizer,
                str(groups[group].spec),
            )
        )
    return tuple(found)
