"""Points whose scales are parameters of the model, and learned with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from torchquilt._internal.torch_private import active_ddp
from torchquilt.errors import CalibrationError
from torchquilt.observers import QParams, qparams_of_range
from torchquilt.observers.extremes import is_data
from torchquilt.pt2e.qat.fake_quantize import (
    fake_quantize,
    learned_fake_quantize,
)
from torchquilt.pt2e.qat.points import (
    ParameterPoint,
    Standing,
    any_zero_point,
    no_data,
    range_of,
)
from torchquilt.spec.qspec import QuantizationSpec


class LearnedPoint(ParameterPoint):
    """A tensor whose scale is a parameter of the model, and learned with it.

    Args:
        spec: what the tensor will be.
        standing: where it stands.
        shape: of its scale.
        is_constant: whether it is a weight.
    """

    is_learned = True
    zero_point: torch.Tensor

    def __init__(
        self, spec: QuantizationSpec, standing: Standing, shape: tuple[int, ...], *, is_constant: bool
    ) -> None:
        super().__init__(spec, standing)
        self.is_constant = is_constant
        self._is_known = False
        #: the learned scale; 0 until one is known
        self.scale = torch.nn.Parameter(torch.zeros(shape))
        self.register_buffer("zero_point", any_zero_point(spec, shape))

    def allow(self, *, observes: bool, quantizes: bool) -> None:
        """Say whether its scale is learned, and whether it rounds."""
        super().allow(observes=observes, quantizes=quantizes)
        self.scale.requires_grad_(observes)

    def start_from(self, found: QParams) -> None:
        """Begin with known parameters."""
        with torch.no_grad():
            self.scale.copy_(found.scale)
            self.zero_point.copy_(found.zero_point)
        self._is_known = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._is_known = False  # has_data looks at the scale that was loaded

    @property
    def has_data(self) -> bool:
        """Whether a scale is known. Compiled code depends on what Python knew when it was compiled."""
        if not self._is_known and not torch.compiler.is_compiling():
            self._is_known = bool((self.scale != 0).any())
        return self._is_known

    def observe(self, tensor: torch.Tensor) -> None:
        """Begin with the range of the first tensor, unless one is known."""
        if not self.has_data:
            self._begin(tensor, is_compiled=torch.compiler.is_compiling())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, tensor: torch.Tensor, *, is_compiled: bool) -> None:
        if is_compiled:
            raise CalibrationError(
                "Compiled code cannot find the scale that learning begins with.",
                node=", ".join(self.names),
                expected="scales that are known before torch.compile",
                got="an observer point that saw no data",
                remedy="pass ranges_from to prepare_qat_pt2e, or run a batch in training mode before",
            )
        nothing = torch.full_like(self.scale.detach(), math.inf)
        low, high = range_of(tensor, self.spec) if is_data(tensor) else (nothing, -nothing)
        low, high = _range_on_all_ranks(low, high)
        if bool((low <= high).all()):
            self.start_from(qparams_of_range(low, high, self.spec))

    def trained(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, fake quantized, with a gradient for the scale."""
        if not self.has_data:
            return tensor
        found = QParams(self._positive(), self.zero_point)
        if self.scale.requires_grad:
            return learned_fake_quantize(tensor, found, self.spec, is_constant=self.is_constant)
        return fake_quantize(tensor, found, self.spec)

    def _positive(self) -> torch.Tensor:
        """The scale, clamped to the smallest of the spec; the gradient is that of the scale itself."""
        return self.scale + (self.scale.detach().clamp(min=self.spec.eps) - self.scale).detach()

    def qparams(self) -> QParams:
        """The learned parameters.

        Raises:
            CalibrationError: the point saw no data.
        """
        if not self.has_data:
            raise no_data(self)
        return QParams(self.scale.detach().clamp(min=self.spec.eps), self.zero_point)


def _range_on_all_ranks(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The range over all ranks, if ``DistributedDataParallel`` runs the model on several."""
    parallel = active_ddp()
    if parallel is None:
        return low, high
    import torch.distributed as dist

    ends = torch.stack([low, -high])
    dist.all_reduce(ends, dist.ReduceOp.MIN, group=parallel.process_group)
    return ends[0], -ends[1]
