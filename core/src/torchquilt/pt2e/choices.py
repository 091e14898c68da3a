"""Choices: parameters, ranges and integers that something else than an observer chose, kept at the points.

A point of a calibrated model may carry one. It goes with the model where it is copied, and with its state
dict; what the observers saw, and the weights, stay beside it as they are.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs
import torch

from torchquilt.graph.qdq import operators_of
from torchquilt.graph.tensor_digest import tensor_digest
from torchquilt.observers import QParams, qparams_of_range
from torchquilt.observers.qparams import as_rows
from torchquilt.pt2e.integer_constants import integers_of

if TYPE_CHECKING:
    from torchquilt.spec.qspec import QuantizationSpec


@attrs.frozen(eq=False)
class ChosenRange:
    """The range of an activation.

    Args:
        low: float32, at most 0.0, in the shape of the parameters.
        high: likewise, at least 0.0.
    """

    low: torch.Tensor
    high: torch.Tensor

    def qparams(self, spec: QuantizationSpec) -> QParams:
        """The parameters that just hold it."""
        return qparams_of_range(self.low, self.high, spec)

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors of its own, on the CPU."""
        return {"low": self.low.detach().cpu().clone(), "high": self.high.detach().cpu().clone()}

    @classmethod
    def from_state(cls, state: dict[str, torch.Tensor] | None) -> ChosenRange | None:
        """The range that gave this state; None for None."""
        return None if state is None else cls(state["low"].clone(), state["high"].clone())


@attrs.frozen(eq=False, slots=False)
class ChosenConstant:
    """Parameters of a constant, and maybe its integers.

    Args:
        qparams: its parameters.
        integers: the integer of each element, in the shape of the constant; None for the nearest ones.
    """

    qparams: QParams
    integers: torch.Tensor | None = None

    @classmethod
    def nearest(cls, value: torch.Tensor, spec: QuantizationSpec, qparams: QParams) -> ChosenConstant:
        """The integers nearest to a constant, as convert would store them.

        Args:
            value: the constant.
            spec: of it.
            qparams: its parameters.
        """
        numbers: Any = qparams
        if qparams.scale.dim() == 0 and not qparams.zero_point.is_floating_point():
            numbers = float(qparams.scale), int(qparams.zero_point)
        operators = operators_of(spec, numbers)
        return cls(qparams, integers_of(value, spec, operators.quantize, operators.arguments))

    @cached_property
    def key(self) -> tuple[str, ...]:
        """Digest of it: equal for equal choices."""
        tensors = (*self.qparams, self.integers)
        return tuple("" if tensor is None else tensor_digest(tensor) for tensor in tensors)

    def instead_of(self, nearest: torch.Tensor, qparams: QParams, spec: QuantizationSpec) -> torch.Tensor:
        """The chosen integers where the parameters are those that they were chosen for, elsewhere others.

        Convert may have to raise a scale: for that of a channel other integers are right.

        Args:
            nearest: the integers nearest to the constant, with the parameters as they are.
            qparams: these parameters.
            spec: of the constant.
        """
        if self.integers is None:
            return nearest
        chosen = self.integers.to(nearest.device)
        holds = torch.ones((), dtype=torch.bool, device=nearest.device)
        for now, then in zip(qparams, self.qparams, strict=True):
            holds = holds & (now.to(nearest.device) == then.to(nearest.device))
        if bool(holds.all()):
            return chosen
        rows, _ = as_rows(torch.empty(nearest.shape, dtype=torch.bool, device=nearest.device), spec)
        by_row = holds.reshape(-1, 1).expand(rows.shape)
        return torch.where(back_from_rows(by_row, nearest, spec), chosen, nearest)

    def state(self) -> dict[str, Any]:
        """Tensors of its own, on the CPU."""
        tensors = {"scale": self.qparams.scale, "zero_point": self.qparams.zero_point}
        found: dict[str, Any] = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        found["integers"] = None if self.integers is None else self.integers.detach().cpu().clone()
        return found

    @classmethod
    def from_state(cls, state: dict[str, Any] | None) -> ChosenConstant | None:
        """The choice that gave this state; None for None."""
        if state is None:
            return None
        integers = state["integers"]
        qparams = QParams(state["scale"].clone(), state["zero_point"].clone())
        return cls(qparams, None if integers is None else integers.clone())


def back_from_rows(rows: torch.Tensor, like: torch.Tensor, spec: QuantizationSpec) -> torch.Tensor:
    """A tensor of the shape of ``like`` whose :func:`torchquilt.observers.qparams.as_rows` are these."""
    if spec.ch_axis is None:
        return rows.reshape(like.shape)
    return rows.reshape(like.movedim(spec.ch_axis, 0).shape).movedim(0, spec.ch_axis)
