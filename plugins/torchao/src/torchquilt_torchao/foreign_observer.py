"""Observers of torchao, run as they are, as observers of torchquilt."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torchao.quantization.pt2e import ObserverBase

from torchquilt.backend import QuantizationSpec, ZeroPointDomain
from torchquilt.errors import AnnotationError, CalibrationError
from torchquilt.observers import Observer, QParams
from torchquilt_torchao.translation import PLAIN_DTYPES, Observing

if TYPE_CHECKING:
    from typing_extensions import Self


class ForeignObserver(Observer):
    """An observer of torchao, which finds the parameters that it finds in torchao's own flow.

    It sees each tensor as often as there, NaN and mask values among the others. What it keeps is its own, so
    that it can be neither merged nor kept in a file.

    Args:
        spec: what the tensor will be.
        make: makes an observer of torchao that saw nothing.
    """

    order_matters: ClassVar[bool] = True
    counts_repeats: ClassVar[bool] = True

    def __init__(self, spec: QuantizationSpec, make: Callable[[], Any]) -> None:
        super().__init__(spec)
        self.make = make
        self.subject = make()

    def update(self, tensor: torch.Tensor) -> None:
        """Show a tensor to the observer.

        Raises:
            CalibrationError: it returns another tensor, with which torchao's flow would go on.
        """
        returned = self.subject.to(tensor.device)(tensor)
        if returned is not tensor and not torch.allclose(returned, tensor, rtol=0, atol=0, equal_nan=True):
            raise CalibrationError(
                f"{type(self.subject).__qualname__} changes the tensor that it observes.",
                expected="an observer that returns the tensor that it is shown",
                got="a tensor with other values",
                remedy='leave observers="theirs" out, or use torchao\'s own flow for this model',
            )
        self.count = self.count + tensor.numel()

    def merge(self, other: Self) -> None:
        """Refuse: observers of torchao cannot be merged.

        Raises:
            CalibrationError: always.
        """
        raise CalibrationError(
            f"{type(self.subject).__qualname__} cannot be merged with one that saw other data.",
            expected="one calibration, in one process",
            remedy='leave observers="theirs" out: observers of torchquilt merge exactly',
        )

    def qparams(self) -> QParams:
        """The parameters that the observer calculates."""
        self._check_has_data()
        shape = () if self.spec.ch_axis is None else (-1,)
        scale, zero_point = (found.detach().reshape(shape) for found in self.subject.calculate_qparams())
        is_float = self.spec.zero_point_domain is ZeroPointDomain.FLOAT
        return QParams(scale.float(), zero_point.to(torch.float32 if is_float else torch.int64))

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest number that the parameters represent."""
        scale, zero_point = self.qparams()
        return (self.spec.quant_min - zero_point) * scale, (self.spec.quant_max - zero_point) * scale

    def settings(self) -> dict[str, Any]:
        """The function that makes another one."""
        return {"make": self.make}

    def state(self) -> dict[str, Any]:
        """Copy of the observer, and how many values it saw."""
        return {**super().state(), "subject": copy.deepcopy(self.subject)}

    @classmethod
    def from_state(cls, spec: QuantizationSpec, state: dict[str, Any]) -> Self:
        """An observer that goes on where another one was when it gave its :meth:`state`."""
        observer = cls(spec, state["make"])
        vars(observer).update(state, subject=copy.deepcopy(state["subject"]))
        return observer


def foreign_observer(spec: QuantizationSpec, foreign: Any, quantizer: str) -> ForeignObserver:
    """The observer that a spec of torchao names.

    Args:
        spec: what the tensor will be.
        foreign: the spec of torchao.
        quantizer: name of the foreign quantizer.

    Raises:
        AnnotationError: it cannot be run here as it is, or observes for other integers than the spec says.
    """
    constructor = foreign.observer_or_fake_quant_ctr
    name = Observing.of(constructor).name
    asked = {field.name: getattr(foreign, field.name) for field in dataclasses.fields(foreign)}
    del asked["observer_or_fake_quant_ctr"]
    if "PerChannel" not in name:  # as torchao decides it
        del asked["ch_axis"]
    found = ForeignObserver(spec, constructor.with_args(**asked))
    is_alone = isinstance(found.subject, ObserverBase) and name != "ConcatObserver"
    integers = _integers_of(found.subject) if is_alone else None
    if integers is None:
        problem = f"{name} cannot be run as it is in torchquilt's flow."
        got = "one that changes tensors, sets other observers or writes operators"
    elif integers != (spec.dtype, spec.quant_min, spec.quant_max, spec.ch_axis):
        problem, got = f"{name} observes for other integers than its spec says.", str(integers)
    else:
        return found
    raise AnnotationError(
        problem,
        quantizer=quantizer,
        expected=f"an observer that only looks, for {spec}",
        got=got,
        remedy='leave observers="theirs" out, or use torchao\'s own flow for this model',
    )


def _integers_of(subject: Any) -> tuple[Any, ...]:
    """Dtype, range and axis with which torchao's convert would write what an observer found."""
    is_per_channel = "per_channel" in str(getattr(subject, "qscheme", None))
    dtype = PLAIN_DTYPES.get(subject.dtype, subject.dtype)
    axis = getattr(subject, "ch_axis", None) if is_per_channel else None
    return dtype, getattr(subject, "quant_min", None), getattr(subject, "quant_max", None), axis
