"""Foreign quantizers, written for torchao, as quantizers of torchquilt."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import attrs
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import quantizer as theirs
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

import torchquilt as tq
from torchquilt.backend import ObservedPoint, QuantizationAnnotation, Reject, Subject, overload_name, probe
from torchquilt.errors import IntentError
from torchquilt.observers import make_observer
from torchquilt_torchao.foreign_observer import ForeignObserver, foreign_observer
from torchquilt_torchao.outgoing import torchao_annotation
from torchquilt_torchao.torchao_quantizer import TorchaoQuantizer
from torchquilt_torchao.translation import Observing, translate_annotations

#: How ranges of activations are found, see :func:`foreign`.
Observers: TypeAlias = Literal["ours", "alike", "theirs"]

# The distributions that decide what a foreign quantizer does, as far as they are installed.
_PACKAGES = ("torchquilt-torchao", "torchao", "executorch", "nncf", "coremltools")

_SOURCE = "source_fn_stack"
_ASK = "which says no more; its quantization_capabilities() would find out what it takes"

#: Observers of torchao for activations, by the observer of torchquilt that comes nearest.
_NEAREST = {
    "MinMaxObserver": "minmax",
    "MovingAverageMinMaxObserver": "moving_average",
    "HistogramObserver": "histogram",
}


def foreign(quantizer: Any, *, observers: Observers = "ours") -> tq.Quantizer:
    """Make a quantizer of torchquilt of one that was written for torchao.

    What :func:`torchquilt_torchao.as_torchao` made becomes again what it was.

    Args:
        quantizer: an instance of ``torchao.quantization.pt2e.quantizer.Quantizer``, configured as its vendor
            says. It is called and never changed.
        observers: how ranges are found: as ``prepare_pt2e`` is told (``"ours"``); for each activation by the
            observer of torchquilt that comes nearest to the one that the foreign spec names (``"alike"``):
            min-max, moving average, histogram; or, of activations and constants, by the observers of torchao
            that the specs name (``"theirs"``), which the foreign ``prepare_obs_or_fq_callback`` may replace.

    Raises:
        IntentError: it is none.
    """
    if isinstance(quantizer, TorchaoQuantizer):
        return quantizer.quantizer
    if isinstance(quantizer, theirs.Quantizer):
        return ForeignQuantizer(quantizer, observers=observers)
    raise IntentError(
        "This is not a quantizer of torchao.",
        expected="an instance of torchao.quantization.pt2e.quantizer.Quantizer",
        got=repr(quantizer),
        remedy="make an instance of it first" if isinstance(quantizer, type) else None,
    )


def has_callback(quantizer: Any) -> bool:
    """Whether a quantizer of torchao replaces observers that were made for it."""
    base = theirs.Quantizer.prepare_obs_or_fq_callback
    return type(quantizer).prepare_obs_or_fq_callback is not base


class ForeignQuantizer(tq.Quantizer):
    """A quantizer of torchao's protocol, whose annotations are read and translated.

    While it annotates it sees the nodes that others have annotated as torchao's protocol shows them: marked
    as annotated, with specs of torchao. If it edits one of them, composing it is an error.

    Args:
        subject: the foreign quantizer.
        observers: as for :func:`foreign`.
    """

    probes_capabilities = True

    def __init__(self, subject: Any, *, observers: Observers = "ours") -> None:
        self.subject = subject
        self.observers = observers
        # Edge or node → the spec of torchao that says how it is observed, between annotate and the callback.
        self._observed: dict[Any, Any] = {}

    @property
    def name(self) -> str:
        """The name of the foreign class."""
        return type(self.subject).__name__

    def __repr__(self) -> str:
        observers = "" if self.observers == "ours" else f", observers={self.observers!r}"
        return f"foreign({self.name}{observers})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ForeignQuantizer):
            return NotImplemented
        return self.observers == other.observers and bool(self.subject == other.subject)

    __hash__ = None  # type: ignore[assignment]

    def quantization_capabilities(self) -> tq.Capabilities:
        """Capabilities of the foreign quantizer under its config, found out by annotating examples.

        Takes up to a minute for the first of its class and config with these versions; the rows are kept.
        """
        return probe(self, self._content)

    @property
    def _content(self) -> Subject:
        return Subject(self.subject, _PACKAGES)

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """The nodes that are not annotated, with the nearest row where the quantizer has been probed."""
        known = self._content.known()
        more = _ASK
        # Those that look for modules and functions of torch find none in any other program.
        if not any(Q_ANNOTATION_KEY in node.meta or _SOURCE in node.meta for node in model.graph.nodes):
            more += "; some quantizers find operators only in programs that are exported with strict=True"
        return {
            node: ((name, attrs.evolve(reject, text=self._why_not(node, known, more))),)
            for node, ((name, reject),) in super().rejections(model).items()
        }

    def _why_not(self, node: Node, known: tq.Capabilities | None, more: str) -> str:
        text = f"not annotated by {self.name}"
        if known is None:
            return f"{text}, {more}"
        rows = [row for row in known if overload_name(node) in row.overloads]
        if not rows:
            return f"{text}, nor was any example of it when that was probed"
        nearest = min(rows, key=lambda row: (not row.specs, len(row.operators)))
        where = f" {nearest.scope}" if nearest.scope else ""
        only = "".join(f", if {condition}" for _, condition in nearest.constraints)
        return f"{text}; probed, it takes {nearest.pattern}{where} ({nearest.spec_text() or 'nothing'}){only}"

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Let the foreign quantizer rewrite the model."""
        with self._content.in_use():
            made: GraphModule = self.subject.transform_for_annotation(model)
        return made

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let the foreign quantizer annotate, and translate what it wrote."""
        with _shown_to_torchao(model), self._content.in_use():
            self.subject.annotate(model)
        observed = translate_annotations(model.graph, self.name)
        if self.observers != "ours":
            self._observed.update(observed)
        return model

    def validate(self, model: GraphModule) -> None:
        """Let the foreign quantizer check the annotated model."""
        with _shown_to_torchao(model):
            self.subject.validate(model)

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Any, Any]
    ) -> None:
        """Choose observers as the foreign specs do; let a foreign callback replace those of torchao.

        Raises:
            IntentError: the foreign quantizer has a callback, and no observers of torchao are run.
            AnnotationError: an observer of torchao cannot be run as it is.
        """
        specs, points = dict(self._observed), edge_or_node_to_obs_or_fq
        self._observed.clear()
        if self.observers == "theirs":
            self._run_theirs(model, specs, points)
            return
        if has_callback(self.subject):
            raise IntentError(
                f"{self.name} replaces observers of torchao, and torchquilt has its own.",
                quantizer=self.name,
                expected='a quantizer without prepare_obs_or_fq_callback, or observers="theirs"',
                got=f"{self.name}.prepare_obs_or_fq_callback",
                remedy='torchquilt_torchao.foreign(quantizer, observers="theirs")',
            )
        for edge_or_node, spec in specs.items():
            name = Observing.of(spec.observer_or_fake_quant_ctr).name
            point = points.get(edge_or_node)
            if name in _NEAREST and isinstance(point, ObservedPoint):
                point.observer = make_observer(_NEAREST[name], point.spec)

    def _run_theirs(self, model: GraphModule, specs: dict[Any, Any], points: dict[Any, Any]) -> None:
        """Put observers of torchao at all that a foreign spec says how to observe, constants as well."""
        made: dict[int, ObservedPoint] = {}
        for edge_or_node, spec in specs.items():
            point = points[edge_or_node]
            if type(point.spec) is tq.QuantizationSpec and not point.spec.is_dynamic:
                observer = foreign_observer(point.spec, spec, self.name)
                made.setdefault(id(point), ObservedPoint(point.spec, observer, point.names))
        points.update({key: made[id(point)] for key, point in points.items() if id(point) in made})
        own: dict[Any, Any] = {key: point for key, point in points.items() if point in made.values()}
        shown = {key: point.observer.subject for key, point in own.items()}
        before = dict(shown)
        self.subject.prepare_obs_or_fq_callback(model, shown)
        if shown.keys() != before.keys():
            raise IntentError(
                f"{self.name} changes in prepare_obs_or_fq_callback which tensors are observed.",
                quantizer=self.name,
                expected="the edges and nodes that it annotated, and no others",
                got=", ".join(map(str, shown.keys() ^ before.keys())),
                remedy="annotate them",
            )
        for key, subject in shown.items():
            if subject is not before[key]:
                make = functools.partial(copy.deepcopy, subject)
                own[key].observer = ForeignObserver(own[key].spec, make)


@attrs.frozen(eq=False)
class _Shown:
    """An annotation of torchquilt, and the one of torchao that stands for it meanwhile."""

    ours: QuantizationAnnotation
    theirs: Any
    before: tuple[dict[Node, Any], Any, bool, bool]

    @classmethod
    def of(cls, node: Node, ours: QuantizationAnnotation) -> _Shown:
        shown = torchao_annotation(node, ours)
        return cls(ours, shown, _content(shown))


@contextlib.contextmanager
def _shown_to_torchao(model: GraphModule) -> Iterator[None]:
    """Show the annotations of a graph in torchao's form; those that are left as they are come back."""
    shown: dict[Node, _Shown] = {}
    for node in model.graph.nodes:
        ours = node.meta.get(Q_ANNOTATION_KEY)
        if isinstance(ours, QuantizationAnnotation):
            shown[node] = _Shown.of(node, ours)
            node.meta[Q_ANNOTATION_KEY] = shown[node].theirs
    try:
        yield
    finally:
        for node, each in shown.items():
            found = node.meta.get(Q_ANNOTATION_KEY)
            if found is each.theirs and _content(found) == each.before:
                node.meta[Q_ANNOTATION_KEY] = each.ours


def _content(annotation: Any) -> tuple[dict[Node, Any], Any, bool, bool]:
    """The decisions that an annotation of torchao holds, apart from the annotation, which may be edited."""
    return (
        dict(annotation.input_qspec_map),
        annotation.output_qspec,
        annotation.allow_implicit_sharing,
        annotation._annotated,
    )
