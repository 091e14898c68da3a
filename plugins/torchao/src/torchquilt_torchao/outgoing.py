"""Translation of torchquilt's annotations and specs into torchao's, with observers of torchao's.

Constants and activations get torchao's min-max observers; torchao's placeholder stands where parameters are
computed while the model runs, or are known.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import (
    MinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
)
from torchao.quantization.pt2e import quantizer as theirs

import torchquilt as tq
from torchquilt import observers
from torchquilt.backend import (
    Granularity,
    QuantizationAnnotation,
    ZeroPointDomain,
    choosing_call,
    constant_value,
    free_name,
    integers_of,
    is_constant,
    operators_of,
    store_tensor,
)


def torchao_annotation(node: Node, ours: QuantizationAnnotation) -> Any:
    """An annotation as torchao's protocol shows it.

    Args:
        node: the annotated node.
        ours: its annotation.
    """
    return theirs.QuantizationAnnotation(
        {source: torchao_spec(spec) for source, spec in ours.input_qspec_map.items()},
        torchao_spec(ours.output_qspec),
        ours.allow_implicit_sharing,
        _annotated=True,
    )


def torchao_spec(spec: Any) -> Any:
    """A spec of torchao for the same integers, with an observer of torchao's; None for None."""
    if spec is None:
        return None
    if isinstance(spec, tq.SharedQuantizationSpec):
        return theirs.SharedQuantizationSpec(spec.edge_or_node)
    if isinstance(spec, tq.FixedQParamsQuantizationSpec):
        return theirs.FixedQParamsQuantizationSpec(
            spec.dtype, spec.scale, spec.zero_point, spec.quant_min, spec.quant_max, torch.per_tensor_affine
        )
    if isinstance(spec, tq.DerivedQuantizationSpec):
        return theirs.DerivedQuantizationSpec(
            list(spec.derived_from),
            _told_pairs(spec.derive_qparams_fn),
            spec.dtype,
            spec.quant_min,
            spec.quant_max,
            torch.per_tensor_affine if spec.ch_axis is None else torch.per_channel_symmetric,
            spec.ch_axis,
        )
    return _observed(spec)


def _observed(spec: tq.QuantizationSpec) -> Any:
    """The spec of a tensor whose parameters are found: from data, from a constant, or from each input."""
    is_own = not _is_of_torchao(spec)
    if is_own:
        constructor: Any = WholeObserver.with_args(spec=spec)
    elif spec.is_dynamic:
        constructor = PlaceholderObserver.with_args(eps=spec.eps)
    elif spec.granularity is Granularity.PER_AXIS:
        constructor = PerChannelMinMaxObserver.with_args(eps=spec.eps)
    else:
        constructor = MinMaxObserver.with_args(eps=spec.eps)
    layout = "per_tensor" if spec.ch_axis is None else "per_channel"
    scheme = getattr(torch, f"{layout}_{'symmetric' if spec.symmetric else 'affine'}")
    # Where a spec says that it is dynamic, a pass of torchao looks for operators of its own making.
    is_dynamic = spec.is_dynamic and not is_own
    integers = (spec.quant_min, spec.quant_max, scheme, spec.ch_axis, is_dynamic)
    return theirs.QuantizationSpec(spec.dtype, constructor, *integers)


def _is_of_torchao(spec: tq.QuantizationSpec) -> bool:
    """Whether observers of torchao find the same parameters for a spec, and convert writes them."""
    if spec.uniform or spec.zero_point_domain is ZeroPointDomain.FLOAT:
        return False
    if spec.symmetric and not spec.dtype.is_signed:
        return False  # they round the middle of the range down, we round it up
    return spec.granularity in (Granularity.PER_TENSOR, Granularity.PER_AXIS)


def _told_pairs(function: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    """Hand the parameters of torchao's observers to a ``derive_qparams_fn`` of torchquilt."""

    def told(sources: list[Any]) -> Any:
        pairs = []
        for source in sources:
            is_per_axis = source.qscheme in (torch.per_channel_affine, torch.per_channel_symmetric)
            shape = (-1,) if is_per_axis else ()
            pairs.append(tuple(found.reshape(shape) for found in source.calculate_qparams()))
        return function(pairs)

    return told


class WholeObserver(ObserverBase):  # type: ignore[misc]
    """A min-max observer for specs that torchao's own have no words for: per token, per group, and such.

    Torchao lets it write what replaces it in the graph.

    Args:
        spec: the spec.
    """

    def __init__(self, spec: tq.QuantizationSpec, **_: Any) -> None:
        super().__init__(spec.dtype, spec.is_dynamic)
        self.spec = spec
        self.found = observers.MinMaxObserver(spec)
        layout = "per_tensor" if spec.granularity is Granularity.PER_TENSOR else "per_channel"
        self.qscheme = getattr(torch, f"{layout}_{'symmetric' if spec.symmetric else 'affine'}")

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Show a tensor to the observer, and return it."""
        if not self.spec.is_dynamic:
            self.found.update(tensor)
        return tensor

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of what was seen."""
        scale, zero_point = self.found.qparams()
        return scale, zero_point

    def convert(self, model: GraphModule, node: Node) -> None:
        """Put quantize and dequantize instead of a call of this observer; store what is constant."""
        (source,) = node.all_input_nodes
        with model.graph.inserting_before(node):
            made = operators_of(self.spec, self._qparams(model, source))
            if is_constant(source) and not self.spec.is_dynamic:
                plain = operators_of(self.spec, self.calculate_qparams())
                integers = integers_of(
                    constant_value(model, source), self.spec, plain.quantize, plain.arguments
                )
                quantized = _stored(model, f"{source.name}_quantized", integers)
            else:
                quantized = model.graph.call_function(made.quantize, (source, *made.arguments))
            arguments, keywords = made.dequantizing_to(source.meta["val"].dtype)
            dequantized = model.graph.call_function(made.dequantize, (quantized, *arguments), keywords)
            dequantized.meta.update(node.meta)
        node.replace_all_uses_with(dequantized)
        model.graph.erase_node(node)

    def _qparams(self, model: GraphModule, source: Node) -> tuple[Any, Any]:
        """Scale and zero point as nodes or numbers."""
        if self.spec.is_dynamic:
            target, asked = choosing_call(self.spec)
            chosen = model.graph.call_function(target, (source, *asked))
            scale, zero = (model.graph.call_function(operator.getitem, (chosen, index)) for index in (0, 1))
            return scale, zero
        found = self.calculate_qparams()
        if self.spec.granularity is Granularity.PER_TENSOR:
            return float(found[0]), int(found[1])
        scale, zero = (
            _stored(model, f"{source.name}_{name}", value)
            for name, value in zip(("scale", "zero_point"), found, strict=True)
        )
        return scale, zero


def _stored(model: GraphModule, name: str, value: torch.Tensor) -> Node:
    """A node that reads a tensor stored in the model."""
    free = free_name(model, name)
    store_tensor(model, free, value)
    return model.graph.get_attr(free)
