"""Several quantizers as one: each annotates in turn, and who comes first keeps a node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import attrs

from torchquilt.errors import CompositionError, QuantizerError, TorchquiltError
from torchquilt.graph.node_values import has_no_effect
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.quantizers.base import Quantizer, as_quantizer
from torchquilt.spec.annotation import (
    ANNOTATION_KEY,
    EditedAnnotationError,
    QuantizationAnnotation,
    annotation_of,
    check_annotation,
)
from torchquilt.spec.qspec import EdgeOrNode
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.pattern import Reject

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

#: A node and what makes it that node: its target and its arguments.
_Form: TypeAlias = tuple["Node", Any, Any, Any]


class ComposableQuantizer(Quantizer):
    """Quantizers in order of precedence. A composition is a quantizer, so compositions nest.

    Args:
        quantizers: :class:`torchquilt.Quantizer` instances, or any objects with ``annotate(model)``.
            May be empty (nothing is quantized).

    Raises:
        IntentError: one of them is not a quantizer.
    """

    def __init__(self, quantizers: Iterable[object]) -> None:
        self.quantizers: tuple[Quantizer, ...] = tuple(as_quantizer(quantizer) for quantizer in quantizers)

    def folds(self, batch_norm: Node, operator: Node) -> bool | None:
        """Whether some quantizer asks for it, or else whether some asks that it is not done."""
        answers = {quantizer.folds(batch_norm, operator) for quantizer in self.quantizers}
        return next((answer for answer in (True, False) if answer in answers), None)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Let each quantizer transform the model, in order.

        What a quantizer is going to take is annotated while those behind it transform, and forgotten
        afterwards: so they see what is not theirs, and do not rewrite it.

        Raises:
            QuantizerError: a quantizer failed, or did not return a model with the inputs of this one.
        """
        kept = {id(annotation) for _, annotation in _annotations(model)}
        for quantizer in self.quantizers:
            with _blamed(quantizer, "transform_for_annotation"):
                model = _transformed(model, quantizer)
            if quantizer is not self.quantizers[-1]:
                _annotate(_Watch(model), quantizer)
        for node, annotation in _annotations(model):
            if id(annotation) not in kept:
                del node.meta[ANNOTATION_KEY]
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let each quantizer annotate, in order, and see to it that none touches another's decision.

        Raises:
            QuantizerError: a quantizer failed, changed the graph, or annotated another model.
            CompositionError: a quantizer changed or removed what an earlier one had annotated.
        """
        watch = _Watch(model)
        for quantizer in self.quantizers:
            _annotate(watch, quantizer)
        # Go on until nothing is added: an operator of one backend may share what an operator of another one
        # shares.
        before = -1
        while len(watch.decided) > before and len(self.quantizers) > 1:
            before = len(watch.decided)
            self._annotate_rest(watch)
        return model

    def annotate_rest(self, model: GraphModule) -> None:
        """Let each quantizer annotate what it can by now, in order."""
        self._annotate_rest(_Watch(model))

    def _annotate_rest(self, watch: _Watch) -> None:
        for quantizer in self.quantizers:
            with watch.over(quantizer, "annotate_rest"):
                quantizer.annotate_rest(watch.model)

    def validate(self, model: GraphModule) -> None:
        """Let each quantizer validate the model that all of them annotated. What it raises comes through."""
        for quantizer in self.quantizers:
            with _blamed(quantizer):
                quantizer.validate(model)

    def rule_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """The problems of all quantizers."""
        return tuple(found for quantizer in self.quantizers for found in quantizer.rule_problems(model))

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """The problems of all quantizers."""
        return tuple(
            problem for quantizer in self.quantizers for problem in quantizer.outcome_problems(model)
        )

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """Reasons of each quantizer for the nodes that none took, the most telling first."""
        found: dict[Node, tuple[tuple[str, Reject], ...]] = {}
        for quantizer in self.quantizers:
            for node, rejected in quantizer.rejections(model).items():
                found[node] = (*found.get(node, ()), *rejected)
        return {node: tuple(sorted(rejected, key=_by_weight)) for node, rejected in found.items()}

    def quantization_capabilities(self) -> Capabilities:
        """Capabilities of the composition, and their owners: the first quantizer that takes an operator."""
        return reduce(
            lambda left, right: left | right,
            (quantizer.quantization_capabilities() for quantizer in self.quantizers),
            Capabilities(),
        )

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """Forward the call to each quantizer, in order."""
        for quantizer in self.quantizers:
            with _blamed(quantizer, "prepare_obs_or_fq_callback"):
                quantizer.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ComposableQuantizer):
            return NotImplemented
        return self.quantizers == other.quantizers

    __hash__ = None  # type: ignore[assignment]  # the quantizers can be changed, so a hash would not hold

    def __repr__(self) -> str:
        return f"ComposableQuantizer([{', '.join(map(repr, self.quantizers))}])"


@contextlib.contextmanager
def _blamed(quantizer: Quantizer, step: str = "") -> Iterator[None]:
    """Have errors of the block say whose they are.

    Args:
        quantizer: who is asked.
        step: what is asked of it. With it, an exception that is not ours becomes the cause of one that is.
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
            remedy="see the cause above, which is the quantizer's own",
        ) from error


def _annotations(model: GraphModule) -> list[tuple[Node, QuantizationAnnotation]]:
    found = ((node, annotation_of(node)) for node in model.graph.nodes)
    return [(node, annotation) for node, annotation in found if annotation is not None]


def _annotate(watch: _Watch, quantizer: Quantizer) -> None:
    """Let one quantizer annotate, watched."""
    with watch.over(quantizer, "annotate"):
        returned: object = quantizer.annotate(watch.model)
        if returned is not None and returned is not watch.model:
            raise QuantizerError(
                "The quantizer annotated another model than the one that it was given.",
                expected="annotations on the nodes of the model that annotate receives",
                got="another model returned from annotate",
                remedy="annotate in place; rewriting belongs into transform_for_annotation",
            )


def _transformed(model: GraphModule, quantizer: Quantizer) -> GraphModule:
    """The model as one quantizer transforms it, called as before and with what the flow relies on."""
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


class _Watch:
    """Sees to it that each quantizer adds annotations to a model, signs them, and changes nothing else."""

    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.decided = {
            node: annotation for node in model.graph.nodes if (annotation := annotation_of(node)) is not None
        }
        self._structure = _structure(model)

    @contextlib.contextmanager
    def over(self, quantizer: Quantizer, step: str) -> Iterator[None]:
        """Watch what a quantizer does in the block, which is a step of the protocol."""
        with _blamed(quantizer, step):
            try:
                yield
            except EditedAnnotationError as error:
                for node, earlier in self.decided.items():
                    if error.edited is earlier or error.edited is earlier.input_qspec_map:
                        raise _touched(node, earlier, quantizer, "tried to edit") from error
                raise
            self._check_structure()
            self._take_up(quantizer)

    def _check_structure(self) -> None:
        before, after = self._structure, _structure(self.model)
        if after == before:
            return
        if self._only_dead_nodes_are_gone(before, after):
            self._structure = after
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
            remedy="rewrite in transform_for_annotation, before anybody annotates",
        )

    def _only_dead_nodes_are_gone(self, before: tuple[_Form, ...], after: tuple[_Form, ...]) -> bool:
        """Whether a quantizer that cleans up, as those of ExecuTorch do, erased what nothing depends on."""
        left = {node for node, *_ in after}
        gone = [node for node, *_ in before if node not in left]
        if tuple(form for form in before if form[0] in left) != after or not all(map(has_no_effect, gone)):
            return False
        from torchquilt.graph.code_generation import outdate

        outdate(self.model)
        for node in gone:
            self.decided.pop(node, None)
        return True

    def _take_up(self, quantizer: Quantizer) -> None:
        """Compare with what was decided before, and take up what is new, in the name of who wrote it."""
        for node in self.model.graph.nodes:
            annotation = annotation_of(node)
            earlier = self.decided.get(node)
            if earlier is not None:
                if annotation is not earlier:
                    deed = "removed" if annotation is None else "changed"
                    raise _touched(node, earlier, quantizer, deed)
            elif annotation is not None:
                if not annotation.author:  # within a nested composition it has been signed already
                    name = annotation.quantizer or quantizer.name
                    annotation = attrs.evolve(annotation, quantizer=name, author=id(quantizer))
                    node.meta[ANNOTATION_KEY] = annotation
                check_annotation(node, annotation)
                self.decided[node] = annotation


def _structure(model: GraphModule) -> tuple[_Form, ...]:
    """All of a graph but its metadata."""
    return tuple((node, node.target, node.args, node.kwargs) for node in model.graph.nodes)


def _touched(
    node: Node, earlier: QuantizationAnnotation, quantizer: Quantizer, deed: str
) -> CompositionError:
    """The error for who touches another's annotation."""
    owner, name = earlier.quantizer or "an earlier quantizer", quantizer.name
    return CompositionError(
        f"{name} {deed} an annotation of {owner}.",
        node=node,
        quantizer=f"{owner} (first), {name} (now)",
        expected=f"the annotation of {owner}",
        got=annotation_of(node),
        remedy=f"compose {name} before {owner}, or let it skip annotated nodes",
    )
