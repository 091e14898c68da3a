"""Use that a quantized tensor makes of its integers: what is cut off, not used, or becomes zero."""

from __future__ import annotations

import torch

from torchquilt.accuracy.error_statistics import decibels
from torchquilt.graph.qdq import QDQ
from torchquilt.observers.extremes import sentinel_limit

#: Of how many values, or a few more, the shares of a tensor that are cut off or become zero are taken.
_LOOKED_AT = 65536


class TensorUse:
    """Use that a tensor makes of its integers.

    Args:
        name: ``output``, or ``input`` and the name of the producer.
        qdq: how it is dequantized.
    """

    def __init__(self, name: str, qdq: QDQ) -> None:
        self.name = name
        self.qdq = qdq
        self.count = self.saturated = self.to_zero = 0.0
        #: sums of squares: of the values, of their errors, of the errors of those that are cut off
        self.signal = self.noise = self.cut_off = 0.0
        self.low, self.high = float("inf"), float("-inf")
        self._channels: torch.Tensor | None = None

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and the largest number that its integers stand for; None where there are several."""
        if not self.qdq.has_one_scale:
            return None
        scale, zero_point = float(self.qdq.scale), int(self.qdq.zero_point)
        return (self.qdq.quant_min - zero_point) * scale, (self.qdq.quant_max - zero_point) * scale

    @property
    def step(self) -> float | None:
        """Distance of two neighbouring numbers; None where there are several."""
        return float(self.qdq.scale) if self.qdq.has_one_scale else None

    @property
    def sqnr(self) -> float:
        """Signal to noise of quantizing the tensor, in dB."""
        return decibels(self.signal, self.noise)

    @property
    def zeroed_channels(self) -> int:
        """Channels (dimension 1) that are not zero, and all of whose values become zero."""
        if self._channels is None or self.step is None:
            return 0
        return int(((self._channels > 0) & (self._channels < self.step / 2)).sum())

    @property
    def unused(self) -> float | None:
        """Share of the range in which no value lies."""
        if self.range is None or not self.count:
            return None
        low, high = self.range
        used = min(self.high, high) - max(self.low, low)
        return max(0.0, 1.0 - used / (high - low)) if high > low else 0.0

    def update(self, value: torch.Tensor, rounded: torch.Tensor) -> None:
        """Take in a tensor before and after it was quantized and dequantized."""
        if not value.numel():
            return
        low, high = (float(end) for end in value.detach().aminmax())
        limit = sentinel_limit(value.dtype)
        is_ordinary = -limit < low <= high < limit
        flat, after = (_some if is_ordinary else _all)(value), (_some if is_ordinary else _all)(rounded)
        if not is_ordinary:
            kept = flat.isfinite() & (flat.abs() < limit)
            flat, after = flat[kept], after[kept]
            if not flat.numel():
                return
            low, high = (float(end) for end in flat.aminmax())
        # A part of a tensor counts as much as the whole of it.
        times = value.numel() / flat.numel() if is_ordinary else 1.0
        self.count += times * flat.numel()
        self.low, self.high = min(self.low, low), max(self.high, high)
        zeros = int(((after == 0) & (flat != 0)).sum())
        self.to_zero += times * zeros
        if value.dim() > 1 and 2 * zeros * value.shape[1] > flat.numel():
            self._take_channels(value)
        noise = after - flat
        if self._is_cut_off(low, high):
            ends = self._ends()
            assert ends is not None
            noise = noise.masked_fill_((flat < ends[0]) | (flat > ends[1]), 0.0)
            # A few values that are cut off may be all of the noise, so none of them may be left out.
            whole = _all(value) if is_ordinary else flat
            self.signal += float(torch.dot(whole, whole))
            self._take_cut_off(whole, low, high)
        else:
            self.signal += times * float(torch.dot(flat, flat))
        self.noise += times * float(torch.dot(noise, noise))

    def _ends(self) -> tuple[float, float] | None:
        """Ends between which values are rounded; those beyond are cut off."""
        if self.range is None or self.step is None:
            return None
        return self.range[0] - self.step / 2, self.range[1] + self.step / 2

    def _is_cut_off(self, low: float, high: float) -> bool:
        ends = self._ends()
        return ends is not None and (low < ends[0] or high > ends[1])

    def _take_cut_off(self, flat: torch.Tensor, low: float, high: float) -> None:
        """Count the values beyond the range, and add the squares of what they lose."""
        ends = self._ends()
        assert self.range is not None
        assert ends is not None
        # What is nearer to the last number than half a step is rounded, not cut off.
        below = [flat[flat < ends[0]] - self.range[0]] if low < ends[0] else []
        above = [flat[flat > ends[1]] - self.range[1]] if high > ends[1] else []
        for excess in (*below, *above):
            lost = float(torch.dot(excess, excess))
            self.saturated += excess.numel()
            self.cut_off += lost
            self.noise += lost

    def _take_channels(self, value: torch.Tensor) -> None:
        """Keep the largest magnitude of each channel. Only where so many values become zero that one may."""
        largest = value.detach().abs().amax([dim for dim in range(value.dim()) if dim != 1]).float()
        if self._channels is not None and self._channels.shape == largest.shape:
            largest = torch.maximum(largest, self._channels)
        self._channels = largest


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """Values of a tensor in a row: all of a small one, of a large one every n-th, with n odd."""
    flat = tensor.detach().reshape(-1)
    # Side by side, since each of the next steps would fetch them from all over the tensor again.
    return flat[:: flat.numel() // _LOOKED_AT | 1].float().contiguous()


def _all(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).float()
