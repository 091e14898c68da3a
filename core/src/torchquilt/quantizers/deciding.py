"""Deciding about a model: each quantizer in turn claims operators of each graph, and the core annotates them.

A quantizer with a support table looks at a graph once, and the core annotates its claims. A quantizer that
annotates by itself runs once, and sees the annotations of the quantizers before it. Last, the tables decide
about operators that share their input's parameters, whichever quantizer claimed their neighbours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import attrs

from torchquilt.errors import CompositionError, QuantizerError, TorchquiltError, UnsupportedConfigError
from torchquilt.graph.node_values import KEPT_IN_FLOAT, has_no_effect
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.quantizers.annotated_claim import annotate_claim
from torchquilt.quantizers.base import Quantizer, inherits
from torchquilt.quantizers.claim import Claim
from torchquilt.quantizers.matching import GraphFacts, Matcher
from torchquilt.quantizers.pattern_quantizer import PatternQuantizer
from torchquilt.spec.annotation import (
    ANNOTATION_KEY,
    EditedAnnotationError,
    QuantizationAnnotation,
    annotation_of,
    check_annotation,
)
from torchquilt.support.pattern import Reject

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch.fx import GraphModule, Node

#: A node, its target, its arguments and its keyword arguments.
_Form: TypeAlias = tuple["Node", Any, Any, Any]


class Deciding:
    """Quantizers in order of precedence, and their decisions about one model.

    Args:
        quantizers: the quantizers, none of them a composition.
    """

    def __init__(self, quantizers: tuple[Quantizer, ...]) -> None:
        self._quantizers = quantizers
        self._matchers: list[list[Matcher]] = [[] for _ in quantizers]

    def transform(self, model: GraphModule) -> GraphModule:
        """Let each quantizer transform a graph, in order.

        Raises:
            QuantizerError: a quantizer failed, or did not return a model that takes the same inputs.
        """
        for quantizer in self._quantizers:
            if not inherits(quantizer, Quantizer.transform_for_annotation):
                with blamed(quantizer, "transform_for_annotation"):
                    model = _transformed(model, quantizer)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let each quantizer annotate a graph, in order, and check that none changes another's annotations.

        Raises:
            QuantizerError: a quantizer failed, changed the graph, or annotated another model.
            CompositionError: a quantizer changed or removed what an earlier one had annotated.
        """
        facts, guard = GraphFacts.of(model.graph), _AnnotationGuard(model)
        matchers: list[tuple[PatternQuantizer, Matcher]] = []
        for quantizer, kept in zip(self._quantizers, self._matchers, strict=True):
            matcher = quantizer.matcher(facts) if isinstance(quantizer, PatternQuantizer) else None
            if matcher is None:
                guard.let_annotate(quantizer)
                continue
            kept.append(matcher)
            matchers.append((cast("PatternQuantizer", quantizer), matcher))
            _settle(guard, *matchers[-1])
        # Repeat until nothing is added: an operator of one backend may share the parameters that an operator
        # of another backend shares.
        while [claim for each in matchers for claim in _settle(guard, *each)]:
            pass
        return model

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for rules without effect, from all quantizers."""
        found: list[TorchquiltError] = []
        for quantizer, matchers in zip(self._quantizers, self._matchers, strict=True):
            if _has_decided(quantizer, matchers, PatternQuantizer.outcome_problems):
                found += quantizer.problems_of(tuple(matchers), model)
            else:
                found += quantizer.outcome_problems(model)
        return tuple(found)

    def check_trains(self) -> None:
        """Check that each row that claims something can be trained.

        Raises:
            UnsupportedConfigError: a row cannot.
        """
        for quantizer, matchers in zip(self._quantizers, self._matchers, strict=True):
            for claim in (claim for matcher in matchers for claim in matcher.claims.values()):
                if not claim.row.is_qat:
                    raise UnsupportedConfigError(
                        f"The row {claim.row.pattern.name} of {quantizer.name} cannot be trained.",
                        node=claim.match.output,
                        quantizer=quantizer.name,
                        expected="rows with is_qat=True",
                        got=f"{claim.row.pattern.name} with is_qat=False, for {claim.rule}",
                        remedy="ask for a config with is_qat=True, which such rows refuse, so that their "
                        "operators go to other rows or stay in float; or calibrate with prepare_pt2e",
                    )

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """Reasons of each quantizer for the nodes that stay in float, the most telling first."""
        found: dict[Node, tuple[tuple[str, Reject], ...]] = {}
        for quantizer, matchers in zip(self._quantizers, self._matchers, strict=True):
            if _has_decided(quantizer, matchers, PatternQuantizer.rejections):
                own = quantizer.rejections_of(tuple(matchers))
            else:
                own = quantizer.rejections(model)
            for node, rejected in own.items():
                found[node] = (*found.get(node, ()), *rejected)
        return {node: tuple(sorted(rejected, key=_by_weight)) for node, rejected in found.items()}


def _has_decided(
    quantizer: Quantizer, matchers: list[Matcher], method: Callable[..., Any]
) -> TypeGuard[PatternQuantizer]:
    """Whether the kept matchers of a quantizer answer for one of its methods."""
    return bool(matchers) and inherits(quantizer, method)


def _settle(guard: _AnnotationGuard, quantizer: PatternQuantizer, matcher: Matcher) -> tuple[Claim, ...]:
    """Annotate the matches that a quantizer can claim so far, and return the new claims."""
    with blamed(quantizer, "annotate"):
        claims = matcher.settle()
        for claim in claims:
            annotate_claim(claim, matcher.rows, quantizer)
            guard.record(claim.match.nodes)
    return claims


@contextlib.contextmanager
def blamed(quantizer: Quantizer, step: str = "") -> Iterator[None]:
    """Name the quantizer in each error of the block.

    Args:
        quantizer: the quantizer that the block calls.
        step: the method that the block calls. If it is given, an exception that is not ours becomes the cause
            of a :class:`QuantizerError`.
    """
    try:
        yield
    except TorchquiltError as error:
        if error.quantizer is None:
            error.quantizer = quantizer.name
        raise
    except Exception as error:
        if not step:
            raise
        raise QuantizerError(
            f"{quantizer.name} failed in {step}.",
            quantizer=quantizer.name,
            got=f"{type(error).__name__}: {error}",
            remedy="see the cause above; the quantizer itself raised it",
        ) from error


def _transformed(model: GraphModule, quantizer: Quantizer) -> GraphModule:
    """The model that one quantizer transformed, with its former signature and complete metadata."""
    from torchquilt.graph.adoption import Convention, adopt

    convention = Convention(model)
    known = frozenset(nodes_of(model))
    made: object = quantizer.transform_for_annotation(model)
    if not (hasattr(made, "graph") and hasattr(made, "recompile")):
        raise QuantizerError(
            "The quantizer did not return the model that it transformed.",
            expected="transform_for_annotation returns a GraphModule",
            got=f"{type(made).__module__}.{type(made).__qualname__}",
            remedy="end transform_for_annotation with `return model`",
        )
    return adopt(cast("GraphModule", made), convention, known, "transform_for_annotation")


def _by_weight(rejected: tuple[str, Reject]) -> int:
    return -rejected[1].weight


class _AnnotationGuard:
    """Guard of a model: each quantizer may add annotations, which the guard signs, and no more."""

    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.decided = {
            node: annotation for node in model.graph.nodes if (annotation := annotation_of(node)) is not None
        }

    def record(self, nodes: Iterable[Node]) -> None:
        """Record the annotations that the core wrote to these nodes."""
        for node in nodes:
            annotation = annotation_of(node)
            assert annotation is not None
            self.decided[node] = annotation

    def let_annotate(self, quantizer: Quantizer) -> None:
        """Let one quantizer annotate, and check what it changed."""
        from torchquilt.graph.code_generation import code_postponed

        before = _structure(self.model)
        with blamed(quantizer, "annotate"):
            try:
                with code_postponed(self.model):
                    returned: object = quantizer.annotate(self.model)
            except EditedAnnotationError as error:
                for node, earlier in self.decided.items():
                    if error.edited is earlier or error.edited is earlier.input_qspec_map:
                        raise _annotation_conflict(node, earlier, quantizer, "tried to edit") from error
                raise
            if returned is not None and returned is not self.model:
                raise QuantizerError(
                    "The quantizer annotated a model other than the one that it received.",
                    expected="annotations on the nodes of the model that annotate receives",
                    got="another model returned from annotate",
                    remedy="annotate in place; rewriting belongs in transform_for_annotation",
                )
            self._check_structure(before)
            self._sign_and_record(quantizer)

    def _check_structure(self, before: tuple[_Form, ...]) -> None:
        after = _structure(self.model)
        if after == before or self._only_dead_nodes_are_gone(before, after):
            return
        earlier = {node for node, *_ in before}
        pairs = zip_longest(before, after, fillvalue=(None,))
        old, new = next(pair for pair in pairs if pair[0] != pair[1])
        changed = new[0] if new[0] is not None and new[0] not in earlier else old[0]
        raise QuantizerError(
            "The quantizer changed the graph while it annotated.",
            node=changed,
            expected="annotations in the metadata of nodes, and no other change",
            got=f"{len(before)} nodes before, {len(after)} after, the first difference at {changed}",
            remedy="rewrite in transform_for_annotation, which runs before any quantizer annotates",
        )

    def _only_dead_nodes_are_gone(self, before: tuple[_Form, ...], after: tuple[_Form, ...]) -> bool:
        """Whether the quantizer erased dead nodes and did nothing else, as those of ExecuTorch do."""
        left = {node for node, *_ in after}
        gone = [node for node, *_ in before if node not in left]
        if tuple(form for form in before if form[0] in left) != after or not all(map(has_no_effect, gone)):
            return False
        from torchquilt.graph.code_generation import outdate

        outdate(self.model)
        return True

    def _sign_and_record(self, quantizer: Quantizer) -> None:
        """Sign and record the annotations that a quantizer added; refuse one that it changed."""
        for node in self.model.graph.nodes:
            annotation = annotation_of(node)
            earlier = self.decided.get(node)
            if earlier is not None:
                if annotation is not earlier:
                    deed = "removed" if annotation is None else "changed"
                    raise _annotation_conflict(node, earlier, quantizer, deed)
            elif annotation is not None:
                if not annotation.author:  # a nested composition has signed it already
                    name = annotation.quantizer or quantizer.name
                    annotation = attrs.evolve(annotation, quantizer=name, author=id(quantizer))
                    node.meta[ANNOTATION_KEY] = annotation
                check_annotation(node, annotation)
                if KEPT_IN_FLOAT in node.meta:
                    raise _kept_in_float(node, annotation)
                self.decided[node] = annotation


def _structure(model: GraphModule) -> tuple[_Form, ...]:
    """The nodes of a graph with their targets and arguments, but without metadata."""
    return tuple((node, node.target, node.args, node.kwargs) for node in model.graph.nodes)


def _kept_in_float(node: Node, annotation: QuantizationAnnotation) -> CompositionError:
    """The error for a quantizer that annotates by itself what a recovery pass keeps in float."""
    return CompositionError(
        f"{annotation.quantizer} annotated {node.name}, which a recovery pass keeps in float.",
        node=node,
        quantizer=annotation.quantizer,
        expected=f"{node.name} in float: {node.meta[KEPT_IN_FLOAT]}",
        got=annotation,
        remedy="use a quantizer with a support table, which leaves it in float, or leave out the pass",
    )


def _annotation_conflict(
    node: Node, earlier: QuantizationAnnotation, quantizer: Quantizer, deed: str
) -> CompositionError:
    """The error for a quantizer that changes another's annotation."""
    owner, name = earlier.quantizer or "an earlier quantizer", quantizer.name
    return CompositionError(
        f"{name} {deed} an annotation of {owner}.",
        node=node,
        quantizer=f"{owner} (first), {name} (now)",
        expected=f"the annotation of {owner}",
        got=annotation_of(node),
        remedy=f"compose {name} before {owner}, or let it skip annotated nodes",
    )
