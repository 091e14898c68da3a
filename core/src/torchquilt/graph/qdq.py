"""Quantize and dequantize operators: what a call says, and which operators say it.

They are torch's own, of the namespace ``quantized_decomposed``. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.graph.node_values import arguments_of, overload_name
from torchquilt.spec.qspec import Granularity, QuantizationSpec

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

#: Granularity → what follows ``quantize_`` and ``dequantize_`` in the names of operators.
_NAMES = {
    Granularity.PER_TENSOR: "per_tensor",
    Granularity.PER_AXIS: "per_channel",
    Granularity.PER_GROUP: "per_channel_group",
    Granularity.PER_TOKEN: "per_token",
}
_GRANULARITIES = {name: granularity for granularity, name in _NAMES.items()}
#: Integers up to this magnitude are exact in bfloat16, which has 8 bits.
_EXACT_IN_HALF = 256


def operators() -> Any:
    """The namespace of the operators, which a private module of torch registers."""
    import torch

    from torchquilt._internal.torch_private import qdq_registration  # noqa: F401

    return torch.ops.quantized_decomposed


#: The name in the face for plugins, where ``operators`` are those of the table.
qdq_operators = operators


# --- Reading ------------------------------------------------------------------------------------------------


@attrs.frozen
class QDQ:
    """A call that quantizes or dequantizes: ``x ≈ (q - zero_point) * scale``.

    Args:
        is_quantize: whether it quantizes; otherwise it dequantizes.
        granularity: the elements that share a scale.
        input: the tensor: floats where it quantizes, integers where it dequantizes.
        scale, zero_point: Python numbers; nodes where there are many, or where the program computes them.
        quant_min, quant_max: the integers that are used.
        dtype: theirs.
        axis, group_size: for ``PER_AXIS``, for ``PER_GROUP``.
    """

    is_quantize: bool
    granularity: Granularity
    input: Node
    scale: Any
    zero_point: Any
    quant_min: int
    quant_max: int
    dtype: torch.dtype
    axis: int | None = None
    group_size: int | None = None

    @property
    def has_one_scale(self) -> bool:
        """Whether there is one scale, which is fixed."""
        return isinstance(self.scale, (int, float))

    @property
    def parameters(self) -> tuple[Any, ...]:
        """Parameters without the tensor: equal where two calls go to and from the same integers."""
        return attrs.astuple(self, recurse=False, filter=lambda field, _: field.name not in _NOT_PARAMETERS)


_NOT_PARAMETERS = ("is_quantize", "input")


def qdq_of(node: Node) -> QDQ | None:
    """Read a node that quantizes or dequantizes; None for a node that does neither."""
    form = _form(overload_name(node))
    if form is None:
        return None
    is_quantize, granularity = form
    arguments = arguments_of(node)
    many = "" if granularity is Granularity.PER_TENSOR else "s"
    return QDQ(
        is_quantize,
        granularity,
        arguments["input"],
        arguments[f"scale{many}"],
        arguments[f"zero_point{many}"],
        arguments["quant_min"],
        arguments["quant_max"],
        arguments["dtype"],
        arguments.get("axis"),
        arguments.get("group_size"),
    )


def quantize_of(node: Node) -> QDQ | None:
    """The same for a node that quantizes; None for another one."""
    return qdq_of(node) if is_quantize(node) else None


def dequantize_of(node: Node) -> QDQ | None:
    """The same for a node that dequantizes; None for another one."""
    return qdq_of(node) if is_dequantize(node) else None


def is_quantize(node: Node) -> bool:
    """Whether a node quantizes."""
    form = _form(overload_name(node))
    return form is not None and form[0]


def is_dequantize(node: Node) -> bool:
    """Whether a node dequantizes."""
    form = _form(overload_name(node))
    return form is not None and not form[0]


def chooses_qparams(node: Node) -> bool:
    """Whether a node finds parameters at run time."""
    return _is_of_namespace(overload_name(node), "choose_qparams")


def is_conversion(node: Node) -> bool:
    """Whether a node quantizes, dequantizes, or finds parameters for that at run time."""
    return _form(overload_name(node)) is not None or chooses_qparams(node)


@cache
def _form(overload: str) -> tuple[bool, Granularity] | None:
    """Whether an operator quantizes (or dequantizes), and how; None where it does neither."""
    for verb in ("quantize_", "dequantize_"):
        if _is_of_namespace(overload, verb):
            name = overload.partition(f".{verb}")[2].partition(".")[0]
            granularity = _GRANULARITIES.get(name)
            return None if granularity is None else (verb == "quantize_", granularity)
    return None


def _is_of_namespace(overload: str, start: str) -> bool:
    return overload.startswith(f"quantized_decomposed.{start}")


# --- Writing ------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class QDQOperators:
    """A quantize operator, its dequantize operator, and what follows the tensor in a call of either."""

    quantize: Any
    dequantize: Any
    arguments: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        granularity: Granularity,
        qparams: Iterable[Any],
        integers: tuple[int, int, torch.dtype],
        *,
        axis: int | None = None,
        group_size: int | None = None,
    ) -> QDQOperators:
        """The operators for a granularity.

        Args:
            granularity: the elements that share a scale.
            qparams: scale and zero point: numbers if they are single and fixed, otherwise nodes or tensors.
            integers: the smallest and the largest integer, and their dtype.
            axis: for ``PER_AXIS``.
            group_size: for ``PER_GROUP``.
        """
        scale, zero_point = qparams
        is_number = granularity is not Granularity.PER_TENSOR or isinstance(scale, float)
        overload = "default" if is_number else "tensor"
        quantize, dequantize = (
            getattr(getattr(operators(), f"{verb}_{_NAMES[granularity]}"), overload)
            for verb in ("quantize", "dequantize")
        )
        low, high, dtype = integers
        values = {
            "scale": scale,
            "scales": scale,
            "zero_point": zero_point,
            "zero_points": zero_point,
            "axis": axis,
            "group_size": group_size,
            "quant_min": low,
            "quant_max": high,
            "dtype": dtype,
        }
        _, *following = quantize._schema.arguments
        return cls(quantize, dequantize, tuple(values[argument.name] for argument in following))

    @property
    def is_exact_in_half(self) -> bool:
        """Whether dequantizing right into half precision loses nothing.

        Per tensor, torch casts the integers before it subtracts the zero point.
        """
        if "per_tensor" not in str(self.dequantize):
            return True
        low, high = self.arguments[2:4]
        return bool(max(abs(low), abs(high), high - low) <= _EXACT_IN_HALF)

    def dequantizing_to(self, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments that follow the integers in a call that dequantizes to a dtype, and its keywords.

        Without an argument for the dtype, the call returns float32.
        """
        names = {argument.name for argument in self.dequantize._schema.arguments}
        if "output_dtype" in names:
            return (*self.arguments, dtype), {}
        is_cast = dtype.itemsize < 4 and self.is_exact_in_half
        return self.arguments, {"out_dtype": dtype} if is_cast else {}


def operators_of(spec: Any, qparams: Iterable[Any]) -> QDQOperators:
    """The operators for a spec.

    Args:
        spec: a spec that says integers of its own.
        qparams: scale and zero point, as for :meth:`QDQOperators.of`.
    """
    integers = (spec.quant_min, spec.quant_max, spec.dtype)
    return QDQOperators.of(spec.granularity, qparams, integers, axis=spec.ch_axis, group_size=spec.group_size)


def choosing_call(spec: QuantizationSpec) -> tuple[Any, tuple[Any, ...]]:
    """The operator that finds scale and zero point of a tensor at run time, and what follows the tensor.

    Args:
        spec: a dynamic spec.
    """
    if spec.granularity is Granularity.PER_TOKEN:
        return operators().choose_qparams_per_token_asymmetric.default, (spec.dtype,)
    choose = operators().choose_qparams_symmetric if spec.symmetric else operators().choose_qparams
    return choose.tensor, (spec.quant_min, spec.quant_max, spec.eps, spec.dtype)
