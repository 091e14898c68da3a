"""The first half of prepare: everything that is decided about a model, and nothing that is inserted.

:func:`explain` stops here; :func:`torchquilt.prepare_pt2e` goes on from here. So what is explained is
what is done.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.torch_defaults import global_state_kept
from torchquilt._internal.torch_private import PyTreeCodeGen
from torchquilt.errors import AnnotationError, ModelError, TorchquiltError
from torchquilt.graph.aliasing import Memory
from torchquilt.graph.batch_norm_folding import fold_batch_norm
from torchquilt.graph.constant_folding import simplify_constants
from torchquilt.graph.edits import copy_model, drop_dead_nodes
from torchquilt.graph.function_transforms import UNDER_A_TRANSFORM, transformed_nodes
from torchquilt.graph.functionalize import make_functional, unify_written_memory
from torchquilt.graph.node_values import is_float_tensor, overload_name, tensor_of
from torchquilt.graph.passes import Pass, everywhere, run_passes
from torchquilt.graph.provenance import complete_provenance
from torchquilt.graph.subgraph_constants import close_subgraphs
from torchquilt.graph.subgraph_inlining import inline_silent_subgraphs
from torchquilt.graph.subgraphs import Region, nodes_of, regions
from torchquilt.graph.training_mode import is_random, moves_statistics
from torchquilt.ledger.ledger import Ledger
from torchquilt.pt2e.ledger_recording import make_ledger
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.sharing_groups import Group, find_groups
from torchquilt.quantizers.base import Quantizer, as_quantizer
from torchquilt.quantizers.composable import leaves_of
from torchquilt.quantizers.deciding import Deciding, blamed
from torchquilt.quantizers.rewriting import rewrite_claims
from torchquilt.spec.annotation import QuantizationAnnotation, annotation_of, check_annotation

#: Before all others, which keep what it writes.
_COMPLETE_PROVENANCE = Pass("complete_provenance", complete_provenance)
#: Brings every region of a model into the form in which quantizers see it, computing the same.
_NORMALIZE = (
    Pass("inline_silent_subgraphs", inline_silent_subgraphs),
    Pass("unify_written_memory", unify_written_memory),
    Pass("close_subgraphs", close_subgraphs),
)
_SIMPLIFY = (
    everywhere("drop_dead_nodes", drop_dead_nodes),
    everywhere("make_functional", make_functional),
    everywhere("simplify_constants", simplify_constants),
)


@attrs.frozen(eq=False)
class Annotated:
    """A copy of the user's model with everything decided, and the record of it.

    Args:
        model: the copy, folded and transformed, with annotations.
        quantizer: who decided.
        groups: for each region of the model, the tensors with one set of parameters.
        ledger: every decision.
    """

    model: GraphModule
    quantizer: Quantizer
    groups: tuple[tuple[Region, tuple[Group, ...]], ...]
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
    with global_state_kept():
        return annotate_copy(model, quantizer, strict=strict).ledger


def annotate_copy(
    model: ExportedProgram | GraphModule,
    quantizer: object,
    *,
    strict: bool = True,
    to_evaluation: Pass | None = None,
    keep_folded: bool = False,
) -> Annotated:
    """Copy a model, fold and transform it, let the quantizer decide, and check what it decided.

    Args:
        model: the user's; nothing of it is changed.
        quantizer: who decides.
        strict: raise for rules that cannot take effect.
        to_evaluation: brings a model that may be in training mode into the form of evaluation, for which
            everything is decided. Rows that cannot be trained are refused then.
        keep_folded: keep what is folded into operators beside it, as for training.
    """
    decider = as_quantizer(quantizer)
    deciding = Deciding(leaves_of(decider))
    first = () if to_evaluation is None else (to_evaluation,)
    own = copy_of_exported(model, may_train=to_evaluation is not None)
    copy = run_passes(own, (_COMPLETE_PROVENANCE, *first, *_NORMALIZE))
    problems = [*_random_problems(copy, may_train=to_evaluation is not None), *decider.rule_problems(copy)]
    _complain(problems, strict)

    def fold(region: GraphModule) -> GraphModule:
        def may_fold(norm: Node, operator: Node) -> bool:
            return decider.folds(norm, operator) is not False

        return fold_batch_norm(region, may_fold, keep=keep_folded)

    decide = (
        everywhere("fold_batch_norm", fold),
        everywhere("transform_for_annotation", deciding.transform),
        everywhere("annotate", deciding.annotate),
        everywhere("rewrite_claims", rewrite_claims),
    )
    copy = run_passes(copy, (*_SIMPLIFY, *decide))
    _check_annotations(copy)
    if to_evaluation is not None:
        deciding.check_trains()
    outcome = deciding.outcome_problems(copy)
    _complain(outcome, strict)
    with blamed(decider):
        decider.validate(copy)
    groups = tuple((region, find_groups(region.module.graph)) for region in regions(copy))
    texts = tuple(str(problem) for problem in (*problems, *outcome))
    return Annotated(copy, decider, groups, make_ledger(groups, deciding.rejections(copy), texts))


_DEEDS = {"trainable": "prepared for training"}


def copy_of_exported(model: object, *, may_train: bool = False) -> GraphModule:
    """A graph module that may be changed, of an exported float model that may not.

    Args:
        model: what the user handed in.
        may_train: whether it may be in training mode.

    Raises:
        ModelError: it is no exported float model in evaluation mode.
    """
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
            f"This model has been {_DEEDS.get(stage, stage)} already.",
            expected="a float model as torch.export gave it",
            got=stage_in_words(model),
            remedy="prepare the exported float model again; it was not changed by preparing it",
        )
    _check_is_exported(model)
    moving = next(filter(moves_statistics, nodes_of(model)), None)
    if moving is not None and not may_train:
        raise _in_training(
            moving, "call model.eval() before torch.export.export, or train it: prepare_qat_pt2e"
        )
    return copy_model(model)


def _in_training(node: Node, remedy: str) -> ModelError:
    return ModelError(
        "This model was exported in training mode.",
        node=node,
        expected="a model in evaluation mode",
        got=node.format_node(),
        remedy=remedy,
    )


def _random_problems(model: GraphModule, *, may_train: bool) -> Iterator[ModelError]:
    """An error for each node that drops at random: mostly by mistake, but it can be meant."""
    meant = "where random numbers are meant, strict=False leaves it in float"
    tell = "tell a functional dropout (training=self.training)"
    for node in filter(is_random, nodes_of(model)):
        if may_train:
            yield ModelError(
                "This model drops at random in evaluation mode, too.",
                node=node,
                expected="dropout that is off in a program exported in evaluation mode",
                got=node.format_node(),
                remedy=f"{tell}, or export in training mode; {meant}",
            )
        else:
            yield _in_training(node, f"call model.eval() before torch.export.export, and {tell}; {meant}")


def _check_is_exported(model: GraphModule) -> None:
    """Refuse graphs of another making: not recorded with shapes, or with the weights as inputs."""
    inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
    has_pytree = isinstance(model.graph._codegen, PyTreeCodeGen)
    if not has_pytree and any(str(node.target).startswith("p_") for node in inputs):
        raise ModelError(
            "This is the graph inside of an exported program, which takes the weights as inputs.",
            expected="the ExportedProgram, or its .module()",
            got=f"exported.graph_module, with the inputs {', '.join(str(node.target) for node in inputs)}",
            remedy="hand in the ExportedProgram itself, or exported.module()",
        )
    if any(overload_name(node).startswith("quantized_decomposed.") for node in nodes_of(model)):
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
    """Annotations fit their nodes, and only tensors are quantized of which a copy is as good."""
    for region in regions(model):
        memory = Memory(region.module.graph)
        transformed = transformed_nodes(region.module.graph)
        for node in region.module.graph.nodes:
            annotation = annotation_of(node)
            if annotation is not None:
                check_annotation(node, annotation)
                if node in transformed:
                    raise _under_a_transform(node, annotation)
                _check_tensors(node, annotation, memory)


def _under_a_transform(node: Node, annotation: QuantizationAnnotation) -> AnnotationError:
    return AnnotationError(
        f"{node.name} cannot be quantized: it {UNDER_A_TRANSFORM}.",
        node=node,
        quantizer=annotation.quantizer or None,
        expected="annotations of nodes outside of function transforms",
        got=annotation,
        remedy="prepare exported.run_decompositions({}), or leave the node in float",
    )


def _check_tensors(node: Node, annotation: QuantizationAnnotation, memory: Memory) -> None:
    tensors = [
        (producer, memory.edge_can_be_copied(producer, node))
        for producer, spec in annotation.input_qspec_map.items()
        if spec is not None
    ]
    if annotation.output_qspec is not None:
        tensors.append((node, memory.output_can_be_copied(node)))
    for tensor, can_be_copied in tensors:
        trouble = _why_not_quantizable(tensor)
        if not trouble and not can_be_copied:
            trouble = "the model writes into it, and would write into a copy"
        if trouble:
            raise AnnotationError(
                f"{tensor.name} cannot be quantized: {trouble}.",
                node=node,
                quantizer=annotation.quantizer or None,
                expected="a float32, float16 or bfloat16 tensor into which nothing is written any more",
                got=tensor.meta.get("val"),
                remedy="annotate only edges that carry such tensors",
            )


def _why_not_quantizable(tensor: Node) -> str:
    """Reason why a tensor cannot be quantized, empty where it can."""
    value = tensor_of(tensor)
    if value is not None and value.dtype is torch.float64:
        return "the quantized_decomposed operators do not take float64"
    if isinstance(tensor.meta.get("val"), (tuple, list)):
        return "it is several values, of which operator.getitem takes one"
    return "" if is_float_tensor(tensor) else "it is not a floating point tensor"
