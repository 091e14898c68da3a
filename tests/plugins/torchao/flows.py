"""Foreign quantizers in torchao's own flow and, through the bridge, in ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import quantize_pt2e as torchao_flow
from torchao.quantization.pt2e import quantizer as theirs
from torchao.quantization.pt2e.observer import (
    FixedQParamsObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
)

import torchquilt as tq
from plugins.oracle import Model
from strategies import export


class MinMax(theirs.Quantizer):  # type: ignore[misc]
    """A quantizer of torchao whose static specs get min-max observers with the smallest scale they had."""

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Do what the quantizer does."""
        made: GraphModule = self.quantizer.transform_for_annotation(model)
        return made

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, and replace observers."""
        self.quantizer.annotate(model)
        for node in model.graph.nodes:
            found = node.meta.get("quantization_annotation")
            if found is not None:
                found.input_qspec_map = {key: _min_max(spec) for key, spec in found.input_qspec_map.items()}
                found.output_qspec = _min_max(found.output_qspec)
        return model

    def validate(self, model: GraphModule) -> None:
        """Do what the quantizer does."""
        self.quantizer.validate(model)


def _min_max(spec: Any) -> Any:
    """A spec with a min-max observer; one that is dynamic, in float or of no observer stays as it is."""
    if not isinstance(spec, theirs.QuantizationSpec) or spec.is_dynamic or spec.dtype.is_floating_point:
        return spec
    made = spec.observer_or_fake_quant_ctr.with_args(dtype=spec.dtype, qscheme=spec.qscheme)()
    made = getattr(made, "activation_post_process", made)  # the observer in a fake quantize
    if isinstance(made, FixedQParamsObserver) or type(made).__name__ == "ConcatObserver":
        return spec  # says parameters, or which tensors have the same
    if "per_channel" not in str(spec.qscheme):
        return dataclasses.replace(
            spec, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=float(made.eps))
        )
    observer = PerChannelMinMaxObserver.with_args(eps=float(made.eps))
    axis = made.ch_axis if spec.ch_axis is None else spec.ch_axis
    return dataclasses.replace(spec, observer_or_fake_quant_ctr=observer, ch_axis=axis)


def exported(model: Model, strict: bool = False) -> Any:
    """A model as torch.export gives it."""
    return export(model.module.eval().requires_grad_(False), *model.inputs, strict=strict)


def batches_of(model: Model, count: int) -> list[tuple[torch.Tensor, ...]]:
    """The inputs of a model, and seeded ones of other ranges behind them; integers stay as they are."""
    generator = torch.Generator().manual_seed(0)

    def other(tensor: torch.Tensor, times: int) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return torch.randn(tensor.shape, generator=generator) * times

    more = (tuple(other(tensor, times) for tensor in model.inputs) for times in range(1, count))
    return [model.inputs, *more]


def by_torchao(model: Model, quantizer: Any, *, strict: bool = False, batches: int = 1) -> GraphModule:
    """The model after torchao's flow, calibrated with its inputs."""
    prepared = torchao_flow.prepare_pt2e(exported(model, strict).module(), quantizer)
    for batch in batches_of(model, batches):
        prepared(*batch)
    converted: GraphModule = torchao_flow.convert_pt2e(prepared)
    return converted


def by_torchquilt(
    model: Model, quantizer: Any, *, strict: bool = False, batches: int = 1, fold_quantize: bool = True
) -> GraphModule:
    """The model after our flow with min-max observers, calibrated with its inputs."""
    prepared = tq.prepare_pt2e(exported(model, strict), quantizer, activation_observer="minmax", strict=False)
    calibrated = tq.calibrate(prepared, batches_of(model, batches))
    return tq.convert_pt2e(calibrated, fold_quantize=fold_quantize)
