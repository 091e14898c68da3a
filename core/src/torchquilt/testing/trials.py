"""One model through the flow, asked for one row of the backend: what is decided, done and computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.batch_norm_folding import fold_batch_norm
from torchquilt.graph.edits import copy_model
from torchquilt.graph.functionalize import make_functional
from torchquilt.graph.node_values import is_float_tensor, is_overwritten, overload_name, tensor_of
from torchquilt.graph.qdq import is_dequantize
from torchquilt.pt2e.annotate import annotate_copy
from torchquilt.pt2e.calibration.calibrate import calibrate
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.prepare import prepare_pt2e
from torchquilt.pt2e.qat.prepare import prepare_qat_pt2e
from torchquilt.quantizers.base import Quantizer
from torchquilt.quantizers.claim import Claim
from torchquilt.quantizers.composable import ComposableQuantizer
from torchquilt.quantizers.matching import GraphFacts, Matcher
from torchquilt.quantizers.pattern_quantizer import PatternQuantizer
from torchquilt.spec.annotation import QuantizationAnnotation, annotate_node, annotation_of
from torchquilt.spec.config import QuantizationConfig
from torchquilt.spec.qspec import QuantizationSpec, SharedQuantizationSpec
from torchquilt.support.pattern import Match, Reject
from torchquilt.support.table import Constraint, Sharing, SupportRow
from torchquilt.testing.configs import least_sqnr
from torchquilt.testing.examples import Example

NEIGHBOUR = "the kit's neighbour"
FOREIGN = "the kit's foreign quantizer"

# Unlike what backends ask for, so that it cannot be mistaken for it.
_FOREIGN_SPEC = QuantizationSpec("uint8", 0, 200)


class Outputs(Quantizer):
    """A quantizer that knows nothing of the backend: it annotates the outputs of operators that are free.

    Args:
        name: what it is called.
        spec: what the outputs will be.
        overloads: the operators; None for all of them.
    """

    def __init__(self, name: str, spec: QuantizationSpec, overloads: tuple[str, ...] | None = None) -> None:
        self._name = name
        self.spec = spec
        self.overloads = overloads

    @property
    def name(self) -> str:
        """Name of the trial."""
        return self._name

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the output of each operator that is meant, is free, and can be quantized."""
        for node in model.graph.nodes:
            operator = overload_name(node)
            meant = operator and (self.overloads is None or operator in self.overloads)
            if meant and _can_be_quantized(node) and annotation_of(node) is None:
                annotate_node(node, QuantizationAnnotation({}, self.spec, quantizer=self.name))
        return model


def _can_be_quantized(node: Node) -> bool:
    """Whether the flow takes an annotation of the node's output: the q/dq operators know no float64."""
    tensor = tensor_of(node)
    return (
        tensor is not None
        and is_float_tensor(node)
        and tensor.dtype is not torch.float64
        and not is_overwritten(node)
    )


def foreign(overloads: tuple[str, ...] | None = None) -> Outputs:
    """A foreign quantizer, of these operators or of all."""
    return Outputs(FOREIGN, _FOREIGN_SPEC, overloads)


@attrs.frozen(eq=False)
class Trial:
    """A model that is to be quantized by one row with one config.

    Args:
        row: the row.
        config: what is asked for.
        cls: the class of the quantizer.
        example: the model.
        model: the exported model.
    """

    row: SupportRow
    config: QuantizationConfig
    cls: type[PatternQuantizer]
    example: Example
    model: GraphModule

    def quantizer(self) -> PatternQuantizer:
        """The backend's own quantizer, asked for the config everywhere.

        A cheap operator is also asked for by its name: whether it is profitable beside what the kit puts
        around it is a question of the core, and not of the row.
        """
        quantizer = self.cls().set_global(self.config)
        if not self.row.profitable_alone and not self.row.differences(self.config):
            for overload in self.row.pattern.operators[0].overloads:
                quantizer.set_object_type(overload, self.config)
        return quantizer

    def neighbour(self) -> tuple[Quantizer, ...]:
        """For a row that follows its input: the quantizer of the operator in front of it."""
        spec = self.config.input_activation
        if self.row.sharing is not Sharing.FOLLOWS_INPUT or spec is None:
            return ()
        return (Outputs(NEIGHBOUR, spec, ("aten.neg.default",)),)

    def composed(self, *quantizers: Quantizer) -> ComposableQuantizer:
        """These quantizers behind the neighbour."""
        return ComposableQuantizer([*self.neighbour(), *quantizers])

    def judged(self) -> tuple[Match | None, Claim | Reject]:
        """Match of the row's pattern in the model, and the claim of the row or the reason why there is
        none.
        """
        model = fold_batch_norm(make_functional(copy_model(self.model)))
        quantizer = self.quantizer()
        model = quantizer.transform_for_annotation(model)
        ComposableQuantizer(self.neighbour()).annotate(model)
        matcher = Matcher(quantizer.table, quantizer.intent, GraphFacts.of(model.graph))
        matcher.settle()
        standing = None
        answer = Reject("not_the_operator", (), f"nothing in it is what {self.row.pattern.name} begins with")
        for node in model.graph.nodes:
            candidates = matcher.rows.get(overload_name(node), ())
            if self.row not in candidates:
                continue
            match = self.row.pattern.match(node)
            standing = match if isinstance(match, Match) else standing
            claim = matcher.claims.get(node)
            if claim is None:
                answer = matcher.rejected[node][candidates.index(self.row)]
            elif claim.row == self.row:
                return standing, claim
            else:
                text = f"{node.name} is taken by the row {claim.row.pattern.name}, which comes first"
                answer = Reject("claimed_by:another_row", (node,), text)
        return standing, answer

    def annotate(self, *quantizers: Quantizer) -> GraphModule:
        """A copy of the model as these quantizers annotate it, by default the backend's own."""
        return annotated(self.model, self.composed(*(quantizers or (self.quantizer(),))))

    def convert(self, *quantizers: Quantizer) -> GraphModule:
        """The model quantized by these quantizers, by default the backend's own."""
        quantizer = self.composed(*(quantizers or (self.quantizer(),)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            prepared = prepare_pt2e(self.model, quantizer, activation_observer="minmax", strict=False)
        return convert_pt2e(calibrate(prepared, [self.example.fresh_inputs()]))

    def trained(self) -> GraphModule:
        """The model after a step of training with quantization in it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            trained = prepare_qat_pt2e(self.model, self.composed(self.quantizer()), strict=False)
        output = trained(*self.example.fresh_inputs())
        asking = [parameter for parameter in trained.parameters() if parameter.requires_grad]
        if output.requires_grad:
            output.float().square().mean().backward()
            torch.optim.SGD(asking, lr=0.01).step()
        return trained

    def run(self, model: Any) -> torch.Tensor:
        """Run a model on the inputs."""
        with torch.no_grad():
            found: torch.Tensor = model(*self.example.fresh_inputs())
        return found

    def sqnr(self, quantized: Any) -> float:
        """Signal to quantization noise ratio of a quantized model against the float model, in dB."""
        return sqnr(self.run(self.example.module), self.run(quantized))

    def least_sqnr(self) -> float:
        """The ratio that it has to reach with this data.

        Where the output has the parameters of the input, it has the ratio that its own size allows: the mean
        of an image is small beside the range of its pixels.
        """
        bound = least_sqnr(self.row, self.config, self.example.dtypes)
        if self.row.sharing is Sharing.NONE:
            return bound
        return min(bound, bound + _lost_by_sharing(self.example.inputs, self.run(self.example.module)))

    def broken(self, match: Match) -> tuple[Constraint, ...]:
        """The constraints of the row that do not hold."""
        return tuple(constraint for constraint in self.row.constraints if not constraint.holds(match))


def _lost_by_sharing(inputs: Iterable[Any], output: torch.Tensor) -> float:
    """Difference in dB between an output and what fills the range of the inputs evenly."""
    tensors = (one for one in inputs if isinstance(one, torch.Tensor) and one.numel())
    floats = [one.double() for one in tensors if one.is_floating_point()]
    high, low = (max(0.0, *(float((sign * one).max()) for one in floats)) for sign in (1, -1))
    even, size = (high + low) / math.sqrt(12), float(output.double().square().mean().sqrt())
    return 20 * math.log10(size / even) if size and even else 0.0


def export(example: Example) -> GraphModule:
    """The exported model of an example."""
    shapes: Any = None
    if example.is_dynamic:
        first, *extras = (
            dict.fromkeys(range(value.dim()), torch.export.Dim.AUTO) for value in example.inputs
        )
        shapes = (first, tuple(extras)) if extras else (first,)  # as Chain.forward takes them
    found = torch.export.export(example.module, example.fresh_inputs(), dynamic_shapes=shapes).module()
    assert isinstance(found, GraphModule)
    return found


def annotated(model: GraphModule, quantizer: Quantizer) -> GraphModule:
    """A copy of a model as a quantizer annotates it; that nothing may come of it is no error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return annotate_copy(model, quantizer, strict=False).model


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Signal to quantization noise ratio in dB: the energy of the reference over that of the difference."""
    signal, noise = float(reference.double().norm()), float((reference.double() - other.double()).norm())
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def has_quantized_tensors(model: GraphModule) -> bool:
    """Whether a converted model dequantizes anything."""
    return any(map(is_dequantize, model.graph.nodes))


def decisions(model: GraphModule) -> dict[int, tuple[Any, ...]]:
    """The annotations of a graph as values that compare, with positions instead of nodes."""
    position = {node: index for index, node in enumerate(model.graph.nodes)}

    def plain(value: Any) -> Any:
        if isinstance(value, SharedQuantizationSpec):
            return "shared", plain(value.edge_or_node)
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return position[value] if isinstance(value, Node) else value

    found = {}
    for node, index in position.items():
        annotation = annotation_of(node)
        if annotation is not None:
            inputs = {plain(source): plain(spec) for source, spec in annotation.input_qspec_map.items()}
            found[index] = (inputs, plain(annotation.output_qspec), annotation.quantizer, annotation.pattern)
    return found


def renamed(model: GraphModule) -> GraphModule:
    """A copy of a graph with other names, which sort the other way round."""
    copy = copy_model(model)
    nodes = list(copy.graph.nodes)
    for index, node in enumerate(nodes):
        if node.op != "placeholder" and node.op != "output":
            node._rename(f"renamed_{len(nodes) - index:04d}")
    copy.recompile()
    return copy
