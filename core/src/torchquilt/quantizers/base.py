"""Quantizers: the protocol that the flow calls, and the one that does it all from a support table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torchquilt.errors import IntentError, TorchquiltError
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.qspec import EdgeOrNode
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.pattern import Reject

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


class Quantizer:
    """Decides which tensors of a graph are quantized, and how. Base class for quantizers of your own.

    Only :meth:`annotate` has to be written. The flow calls, in this order,
    :meth:`transform_for_annotation`, :meth:`annotate`, :meth:`validate` and, once the observers are
    made, :meth:`prepare_obs_or_fq_callback`. All of them work on a copy of the user's model.

    A model with control flow holds graphs within its graph (``torchquilt.graph.subgraphs``).
    :meth:`transform_for_annotation` and :meth:`annotate` are called for the model and then for each subgraph,
    which looks like a model of its own; the others are asked of the whole.

    Attributes:
        probes_capabilities: :meth:`quantization_capabilities` finds them out by trying, which may take a
            minute. Prepare does not ask such a quantizer, and records none of it.
    """

    probes_capabilities: bool = False

    @property
    def name(self) -> str:
        """Name of this quantizer in annotations and errors; by default its class."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{self.name}()"

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrite what has to be in another form to be quantized; return the model.

        It may be another graph module than the one that came in, rebuilt or exported again, if it takes the
        same inputs and returns the same outputs. How it is called and what its nodes record is completed.
        """
        return model

    def folds(self, batch_norm: Node, operator: Node) -> bool | None:
        """Whether a BatchNorm is to be folded into the operator before it; None where nothing is asked.

        It is folded unless a quantizer says False and none says True.
        """
        return None

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write a :class:`torchquilt.QuantizationAnnotation` on each node that is to be quantized.

        Nodes that are annotated already belong to another quantizer and are left alone, and so is the
        graph itself: others have decided about it as it is. Dead code may be erased. Returns the model, or
        nothing. Called once for each graph.
        """
        raise NotImplementedError(f"{self.name} does not say what it annotates")

    def validate(self, model: GraphModule) -> None:
        """Raise an error if the annotated model cannot run on this backend; it reaches the user as it is."""

    def quantization_capabilities(self) -> Capabilities:
        """Capabilities of this quantizer, as far as it can tell without a model."""
        return Capabilities()

    def rule_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for rules that cannot take effect in this model, found before anything is transformed."""
        return ()

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        """Errors for unmet rules, found once all quantizers have annotated the model."""
        return ()

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        """Name and reasons of this quantizer for each node of an annotated model that stays in float.

        By default the reason is ``not_annotated``.
        """
        text = f"{self.name} did not annotate it, and says no more"
        return {
            node: ((self.name, Reject("not_annotated", (node,), text)),)
            for node in nodes_of(model)
            if node.op == "call_function" and annotation_of(node) is None
        }

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        """See, and replace where wanted, what was chosen to observe each edge and output.

        The observer of a point may be replaced, and a point by another one for the same integers, at all of
        its edges and nodes. Which these are, and which of them share parameters, is settled by annotations.

        Args:
            model: the annotated model, before observers are put in.
            edge_or_node_to_obs_or_fq: edge ``(producer, user)`` or node → the module that will stand
                there, a :class:`torchquilt.pt2e.observer_points.QuantizationPoint`. Edges and nodes that
                share parameters hold the same module.
        """


def inherits(quantizer: Quantizer, method: Callable[..., Any]) -> bool:
    """Whether a quantizer has a method as a class above it wrote it."""
    return getattr(getattr(quantizer, method.__name__), "__func__", None) is method


def as_quantizer(subject: object) -> Quantizer:
    """A :class:`Quantizer`, or any object that has ``annotate``, or ``"backend:preset"``, seen as one.

    A quantizer of another library is wrapped by the installed plugin that is a bridge to it.

    Args:
        subject: the object.

    Raises:
        IntentError: the object has no ``annotate``, is a quantizer of another library to which no bridge is
            installed, or a text without a preset.
        PluginNotFoundError, PluginConflictError, PluginLoadError, UnsupportedConfigError: a text names what
            is not installed, or does not load.
    """
    if isinstance(subject, Quantizer):
        return subject
    if isinstance(subject, str):
        return _spelled(subject)
    for package in _foreign_bases(subject):
        return _wrapped(subject, package)
    if callable(getattr(subject, "annotate", None)) and not isinstance(subject, type):
        return _Adapted(subject)
    raise IntentError(
        "This is not a quantizer.",
        expected="a torchquilt.Quantizer, or an object with annotate(model)",
        got=repr(subject),
        remedy="make an instance of it first" if isinstance(subject, type) else None,
    )


def _foreign_bases(subject: object) -> Iterator[str]:
    """Packages of the classes called ``Quantizer`` above an object's own, to which a bridge is known."""
    from torchquilt.plugins import registry

    for base in type(subject).__mro__[1:]:
        package = base.__module__.partition(".")[0]
        if base.__name__ == "Quantizer" and (registry.wrapper_for(package) or registry.bridge_to(package)):
            yield package


def _wrapped(subject: object, package: str) -> Quantizer:
    """The quantizer that an installed bridge makes of one of another library."""
    from torchquilt.plugins import registry

    wrap = registry.wrapper_for(package)
    if wrap is not None:
        made = wrap(subject)
        assert isinstance(made, Quantizer), f"the bridge to {package} returned {made!r}"
        return made
    known = registry.bridge_to(package)
    assert known is not None
    raise IntentError(
        f"{type(subject).__name__} is a quantizer of {package}, and the bridge to it is not installed.",
        expected=f"the plugin {known.name!r}, which makes torchquilt quantizers of those of {package}",
        got=f"{type(subject).__module__}.{type(subject).__qualname__}",
        remedy=f"pip install {known.distribution}",
    )


def _spelled(text: str) -> Quantizer:
    """The quantizer that ``"backend:preset"`` means."""
    from torchquilt.plugins import registry

    backend, colon, preset = text.partition(":")
    if not colon or not backend.strip() or not preset.strip():
        raise IntentError(
            "This text does not say which backend quantizes, and how.",
            expected="'backend:preset', such as 'xnnpack:static_int8_per_channel'",
            got=repr(text),
            remedy="torchquilt.backends() lists the backends and their presets",
        )
    return registry.quantizer(backend.strip(), preset.strip())


class _Adapted(Quantizer):
    """A user's object that has some of the methods; the others do what the base class does."""

    def __init__(self, subject: Any) -> None:
        self.subject = subject

    @property
    def name(self) -> str:
        return str(getattr(self.subject, "name", type(self.subject).__name__))

    def _call(self, method: str, otherwise: Callable[..., Any], *args: Any) -> Any:
        return getattr(self.subject, method, otherwise)(*args)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        found: GraphModule = self._call("transform_for_annotation", super().transform_for_annotation, model)
        return found

    def annotate(self, model: GraphModule) -> GraphModule:
        found: GraphModule = self.subject.annotate(model)
        return found

    def folds(self, batch_norm: Node, operator: Node) -> bool | None:
        found: bool | None = self._call("folds", super().folds, batch_norm, operator)
        return found

    def validate(self, model: GraphModule) -> None:
        self._call("validate", super().validate, model)

    def quantization_capabilities(self) -> Capabilities:
        found: Capabilities = self._call("quantization_capabilities", super().quantization_capabilities)
        return found

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, Any]
    ) -> None:
        self._call(
            "prepare_obs_or_fq_callback", super().prepare_obs_or_fq_callback, model, edge_or_node_to_obs_or_fq
        )

    def rule_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        return tuple(self._call("rule_problems", super().rule_problems, model))

    def outcome_problems(self, model: GraphModule) -> tuple[TorchquiltError, ...]:
        return tuple(self._call("outcome_problems", super().outcome_problems, model))

    def rejections(self, model: GraphModule) -> dict[Node, tuple[tuple[str, Reject], ...]]:
        return dict(self._call("rejections", super().rejections, model))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Adapted) and bool(self.subject == other.subject)

    __hash__ = None  # type: ignore[assignment]
