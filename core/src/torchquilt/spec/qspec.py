"""Specs: the integers that stand for a tensor.

A spec says the integer type, its range, how parameters are laid out over the tensor and whether they
are found ahead of time or for each input. It does not say how a range is measured: that is the policy
of the calibration (see ``torchquilt.observers``), chosen when a model is prepared.

Importing this module does not import torch, so that tables of specs can be read without it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union

import attrs

from torchquilt.errors import SpecError
from torchquilt.spec.dtypes import INTEGER_RANGES, check_integer_type, dtype_name, to_torch_dtype

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

_E = TypeVar("_E", bound=enum.Enum)


#: ``torch.finfo(torch.float32).eps``: the smallest scale unless a spec says otherwise.
FLOAT32_EPS = 2.0**-23


class Granularity(str, enum.Enum):
    """Granularity: the number of scales of a tensor, and the elements that share one."""

    PER_TENSOR = "per_tensor"  #: one scale for the whole tensor
    PER_AXIS = "per_axis"  #: one scale for each index of ``ch_axis`` (a row or a channel)
    PER_GROUP = "per_group"  #: one for each run of ``group_size`` elements along the last dimension
    PER_TOKEN = "per_token"  #: one for each row along the last dimension, found anew for each input

    def __str__(self) -> str:
        return self.value


class ZeroPointDomain(str, enum.Enum):
    """Whether the zero point is an integer or a float.

    ``INT`` represents 0.0 exactly: ``x ≈ (q - zero_point) * scale`` with an integer zero point.
    ``FLOAT`` keeps the range from min to max as it is (embedding tables), with a float zero point.
    """

    INT = "int"
    FLOAT = "float"

    def __str__(self) -> str:
        return self.value


def _to_granularity(value: Granularity | str) -> Granularity:
    return _member(Granularity, "granularity", value)


def _to_domain(value: ZeroPointDomain | str) -> ZeroPointDomain:
    return _member(ZeroPointDomain, "zero_point_domain", value)


def _member(kind: type[_E], field: str, value: _E | str) -> _E:
    """A member of an enum, given as such or by its text (a recipe, a REPL)."""
    try:
        return kind(value)
    except ValueError:
        raise SpecError(
            f"{value!r} is not a {field} that torchquilt knows.",
            field=field,
            expected=" | ".join(member.value for member in kind),
            got=f"{field}={value!r}",
            remedy="pass one of these (the text, or the member of the enum)",
        ) from None


def _to_edges_and_nodes(edges_and_nodes: Iterable[EdgeOrNode]) -> tuple[EdgeOrNode, ...]:
    return tuple(edges_and_nodes)


def _check_quant_range(dtype: object, quant_min: object, quant_max: object) -> None:
    lowest, highest = check_integer_type("dtype", dtype)
    name = dtype_name(dtype)
    for field, value in (("quant_min", quant_min), ("quant_max", quant_max)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise SpecError(
                "The ends of the quantized range are whole numbers.",
                field=field,
                expected="an int",
                got=f"{field}={value!r} ({type(value).__name__})",
                remedy=f"for all of {name} leave it out, or pass {lowest} and {highest}",
            )
        if not lowest <= value <= highest:
            raise SpecError(
                f"{field} lies outside of what {name} can hold.",
                field=field,
                expected=f"{lowest} <= {field} <= {highest}",
                got=f"{field}={value}",
                remedy="narrow the range, or take a wider dtype",
            )
    assert isinstance(quant_min, int)
    assert isinstance(quant_max, int)
    if quant_min >= quant_max:
        raise SpecError(
            "The quantized range is empty.",
            field="quant_min",
            expected="quant_min < quant_max",
            got=f"quant_min={quant_min}, quant_max={quant_max}",
            remedy=f"for all of {name} pass {lowest} and {highest}",
        )


@attrs.frozen(cache_hash=True)
class QuantizationSpec:
    """Representation of a tensor by integers: ``x ≈ (q - zero_point) * scale``.

    The formula is the affine quantization of Jacob et al. 2018 (arXiv:1712.05877), as the
    ``quantized_decomposed`` operators of torch compute it.

    Args:
        dtype: integer dtype of the quantized values: int8, uint8, int16, uint16 or int32
            (a ``torch.dtype`` or its name).
        quant_min: smallest integer used, within the dtype. Default: the smallest of the dtype.
        quant_max: largest integer used, within the dtype, greater than ``quant_min``.
        granularity: which elements share a scale, see :class:`Granularity`.
        symmetric: the range is centred on 0.0, so the zero point is fixed
            (0 for signed dtypes, the middle of the range for unsigned ones).
        is_dynamic: the parameters are computed from each input when the model runs.
        ch_axis: the axis of ``per_axis``; must be None for every other granularity.
        group_size: elements of a group for ``per_group``; must be None for every other granularity.
        zero_point: only for symmetric specs, and there only the value that symmetry implies; None fills it
            in. An unsigned range with two integers in the middle may have either: 128 (if None) or 127.
        zero_point_domain: see :class:`ZeroPointDomain`.
        eps: smallest scale that may be chosen, > 0 (in units of the float tensor). Where each token has its
            own, torch's operator chooses none below 2**-23, whatever this says.
        uniform: only for ``per_axis``: every index of the axis gets the same parameters, those of the
            whole tensor. For kernels that read one scale for each channel where one in all is wanted.

    Raises:
        SpecError: two fields contradict each other; its ``field`` says which one to change.
    """

    dtype: torch.dtype = attrs.field(converter=to_torch_dtype)
    quant_min: int = attrs.field()
    quant_max: int = attrs.field()
    granularity: Granularity = attrs.field(default=Granularity.PER_TENSOR, converter=_to_granularity)
    symmetric: bool = attrs.field(default=False, kw_only=True)
    is_dynamic: bool = attrs.field(default=False, kw_only=True)
    ch_axis: int | None = attrs.field(default=None, kw_only=True)
    group_size: int | None = attrs.field(default=None, kw_only=True)
    zero_point: int | None = attrs.field(default=None, kw_only=True)
    zero_point_domain: ZeroPointDomain = attrs.field(
        default=ZeroPointDomain.INT, converter=_to_domain, kw_only=True
    )
    eps: float = attrs.field(default=FLOAT32_EPS, kw_only=True)
    uniform: bool = attrs.field(default=False, kw_only=True)

    @quant_min.default
    def _lowest(self) -> int:
        return check_integer_type("dtype", self.dtype)[0]

    @quant_max.default
    def _highest(self) -> int:
        return check_integer_type("dtype", self.dtype)[1]

    def __attrs_post_init__(self) -> None:
        _check_quant_range(self.dtype, self.quant_min, self.quant_max)
        self._check_layout()
        self._check_when_found()
        self._check_zero_point()

    def _check_layout(self) -> None:
        """The axis belongs to per_axis and the group size to per_group, and to nothing else."""
        for field, owner in (("ch_axis", Granularity.PER_AXIS), ("group_size", Granularity.PER_GROUP)):
            value = getattr(self, field)
            if (self.granularity is owner) == (value is None):
                needs = "needs" if value is None else "does not take"
                raise SpecError(
                    f"The granularity {self.granularity} {needs} a {field}.",
                    field=field,
                    expected=f"a {field} with granularity={owner}, None with any other",
                    got=f"granularity={self.granularity}, {field}={value}",
                    remedy=f"set granularity='{owner}' and {field} together",
                )
        if self.ch_axis is not None and (isinstance(self.ch_axis, bool) or not isinstance(self.ch_axis, int)):
            raise SpecError(
                "ch_axis is the index of a dimension.",
                field="ch_axis",
                expected="an int",
                got=repr(self.ch_axis),
            )
        if self.group_size is not None and (not isinstance(self.group_size, int) or self.group_size < 2):
            raise SpecError(
                "A group has at least two elements.",
                field="group_size",
                expected="an int >= 2",
                got=f"group_size={self.group_size!r}",
                remedy="32 and 128 are the usual sizes",
            )

        if dtype_name(self.dtype) == "uint16" and self.granularity is not Granularity.PER_TENSOR:
            raise SpecError(
                "uint16 is quantized per tensor only: torch's operators take no other.",
                field="granularity",
                expected="granularity=per_tensor with uint16",
                got=f"granularity={self.granularity}",
                remedy="take int16, or granularity='per_tensor'",
            )
        if self.uniform and self.granularity is not Granularity.PER_AXIS:
            raise SpecError(
                f"The granularity {self.granularity} has nothing to make uniform.",
                field="uniform",
                expected="uniform=False, or granularity=per_axis",
                got=f"uniform=True, granularity={self.granularity}",
                remedy="leave uniform out",
            )

    def _check_when_found(self) -> None:
        """Per-token parameters exist only while the model runs; per-axis ones only ahead of time."""
        if self.granularity is Granularity.PER_TOKEN and not self.is_dynamic:
            raise SpecError(
                "Per-token parameters belong to each input, so they can only be found while the model runs.",
                field="is_dynamic",
                expected="is_dynamic=True with granularity=per_token",
                got="is_dynamic=False",
                remedy="set is_dynamic=True, or take granularity='per_tensor'",
            )
        if self.granularity is Granularity.PER_TOKEN:
            self._check_per_token_range()
        if self.is_dynamic and self.granularity in (Granularity.PER_AXIS, Granularity.PER_GROUP):
            raise SpecError(
                f"Dynamic quantization is per tensor or per token, not {self.granularity}.",
                field="granularity",
                expected="per_tensor | per_token with is_dynamic=True",
                got=f"granularity={self.granularity}",
                remedy="set granularity='per_token', or is_dynamic=False",
            )
        if not (isinstance(self.eps, (int, float)) and 0 < self.eps < float("inf")):
            raise SpecError(
                "eps is the smallest scale, so it is a positive number.",
                field="eps",
                expected="0 < eps < inf",
                got=f"eps={self.eps!r}",
                remedy="leave it out (2**-23), or pass 2**-12 as ExecuTorch's configs do",
            )

    def _check_per_token_range(self) -> None:
        own = (dtype_name(self.dtype), self.quant_min, self.quant_max, self.symmetric)
        if own != ("int8", -128, 127, False):
            raise SpecError(
                "Per-token quantization is affine and uses all of int8: torch's operator knows no other.",
                field="symmetric" if self.symmetric else "quant_min" if own[0] == "int8" else "dtype",
                expected="dtype=int8, quant_min=-128, quant_max=127, symmetric=False with per_token",
                got=f"dtype={own[0]}, quant_min={own[1]}, quant_max={own[2]}, symmetric={self.symmetric}",
                remedy="leave the range and symmetric out, or take granularity='per_tensor'",
            )

    def _check_zero_point(self) -> None:
        if self.is_dynamic and self.zero_point_domain is ZeroPointDomain.FLOAT:
            raise SpecError(
                "Dynamic quantization finds an integer zero point.",
                field="zero_point_domain",
                expected="zero_point_domain=int with is_dynamic=True",
                got="zero_point_domain=float",
                remedy="leave zero_point_domain out",
            )
        if self.symmetric and self.zero_point_domain is ZeroPointDomain.FLOAT:
            raise SpecError(
                "A symmetric spec has an integer zero point.",
                field="zero_point_domain",
                expected="zero_point_domain=int with symmetric=True",
                got="zero_point_domain=float",
                remedy="set symmetric=False, or leave zero_point_domain out",
            )
        if not self.symmetric:
            if self.zero_point is not None:
                raise SpecError(
                    "The zero point of an asymmetric spec comes from calibration.",
                    field="zero_point",
                    expected="zero_point=None with symmetric=False",
                    got=f"zero_point={self.zero_point}",
                    remedy="leave it out, or use FixedQParamsQuantizationSpec for known parameters",
                )
            return
        implied = self._symmetric_zero_point()
        if implied and self.zero_point == self.quant_min + self.quant_max - implied:
            implied = self.zero_point  # of two integers in the middle, either one
        if self.zero_point not in (None, implied):
            raise SpecError(
                f"A symmetric {dtype_name(self.dtype)} spec cannot have another zero point.",
                field="zero_point",
                expected=f"zero_point={implied} (or None)",
                got=f"zero_point={self.zero_point}",
                remedy="leave zero_point out, or set symmetric=False",
            )
        if not self.quant_min <= implied <= self.quant_max:
            raise SpecError(
                "A symmetric range has its zero point inside.",
                field="quant_min",
                expected=f"quant_min <= {implied} <= quant_max",
                got=f"quant_min={self.quant_min}, quant_max={self.quant_max}",
                remedy="widen the range, or set symmetric=False",
            )
        object.__setattr__(self, "zero_point", implied)

    def _symmetric_zero_point(self) -> int:
        if not dtype_name(self.dtype).startswith("u"):
            return 0
        return (self.quant_min + self.quant_max + 1) // 2

    @property
    def bits(self) -> int:
        """Bits that the range needs (4 for -8..7 in int8)."""
        return (self.quant_max - self.quant_min).bit_length()

    def __str__(self) -> str:
        """Short form for tables and errors: ``int8 per_axis(0) symmetric [-127, 127]``."""
        layout = str(self.granularity)
        if self.ch_axis is not None:
            layout += f"({self.ch_axis})"
        if self.group_size is not None:
            layout += f"({self.group_size})"
        if self.uniform:
            layout += " uniform"
        words = [dtype_name(self.dtype), layout, "symmetric" if self.symmetric else "affine"]
        if self.zero_point_domain is ZeroPointDomain.FLOAT:
            words.append("float zero point")
        if self.is_dynamic:
            words.append("dynamic")
        if self.symmetric and self.zero_point != self._symmetric_zero_point():
            words.append(f"around {self.zero_point}")
        if (self.quant_min, self.quant_max) != INTEGER_RANGES[dtype_name(self.dtype)]:
            words.append(f"[{self.quant_min}, {self.quant_max}]")
        return " ".join(words)


@attrs.frozen
class SharedQuantizationSpec:
    """This tensor uses the parameters of another one.

    Args:
        edge_or_node: a node (its output) or an edge ``(producer, user)`` (an input of the user) of
            the same graph, which must be annotated, too.
    """

    edge_or_node: EdgeOrNode


@attrs.frozen(cache_hash=True)
class FixedQParamsQuantizationSpec:
    """Parameters that do not depend on data, as for sigmoid (0..1) and tanh (-1..1).

    Args:
        dtype: integer dtype, as in :class:`QuantizationSpec`.
        scale: > 0, in units of the float tensor.
        zero_point: within ``quant_min`` … ``quant_max``.
        quant_min, quant_max: the range, within the dtype.
    """

    dtype: torch.dtype = attrs.field(converter=to_torch_dtype)
    scale: float
    zero_point: int
    quant_min: int = attrs.field()
    quant_max: int = attrs.field()

    @quant_min.default
    def _lowest(self) -> int:
        return check_integer_type("dtype", self.dtype)[0]

    @quant_max.default
    def _highest(self) -> int:
        return check_integer_type("dtype", self.dtype)[1]

    def __attrs_post_init__(self) -> None:
        _check_quant_range(self.dtype, self.quant_min, self.quant_max)
        if not 0 < self.scale < float("inf"):
            raise SpecError(
                "A scale is a positive number.",
                field="scale",
                expected="0 < scale < inf",
                got=f"scale={self.scale}",
            )
        if not self.quant_min <= self.zero_point <= self.quant_max:
            raise SpecError(
                "The zero point lies outside of the quantized range.",
                field="zero_point",
                expected=f"{self.quant_min} <= zero_point <= {self.quant_max}",
                got=f"zero_point={self.zero_point}",
            )

    @property
    def granularity(self) -> Granularity:
        """Always per tensor."""
        return Granularity.PER_TENSOR

    @property
    def ch_axis(self) -> None:
        """None, since the parameters are per tensor."""

    @property
    def group_size(self) -> None:
        """None, since the parameters are per tensor."""

    @property
    def zero_point_domain(self) -> ZeroPointDomain:
        """Always integer."""
        return ZeroPointDomain.INT

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} fixed(scale={self.scale}, zero_point={self.zero_point})"


@attrs.frozen
class DerivedQuantizationSpec:
    """Parameters computed from those of other tensors, as a bias has input scale x weight scale.

    Args:
        derived_from: the edges or nodes whose parameters are needed; each is annotated with a spec of
            its own.
        derive_qparams_fn: called at convert with one ``(scale, zero_point)`` pair of tensors for each
            of ``derived_from``; returns ``(scale, zero_point)``, tensors of one shape: 0-d (or one
            element) for ``per_tensor``, as long as the axis for ``per_axis``.
        dtype, quant_min, quant_max, granularity, ch_axis: as in :class:`QuantizationSpec`.
    """

    derived_from: tuple[EdgeOrNode, ...] = attrs.field(converter=_to_edges_and_nodes)
    derive_qparams_fn: Callable[[list[tuple[torch.Tensor, torch.Tensor]]], tuple[torch.Tensor, torch.Tensor]]
    dtype: torch.dtype = attrs.field(converter=to_torch_dtype)
    quant_min: int = attrs.field()
    quant_max: int = attrs.field()
    granularity: Granularity = attrs.field(default=Granularity.PER_TENSOR, converter=_to_granularity)
    ch_axis: int | None = attrs.field(default=None, kw_only=True)

    @quant_min.default
    def _lowest(self) -> int:
        return check_integer_type("dtype", self.dtype)[0]

    @quant_max.default
    def _highest(self) -> int:
        return check_integer_type("dtype", self.dtype)[1]

    def __attrs_post_init__(self) -> None:
        _check_quant_range(self.dtype, self.quant_min, self.quant_max)
        if not self.derived_from:
            raise SpecError(
                "Nothing to derive the parameters from.",
                field="derived_from",
                expected="at least one edge or node",
                got="()",
            )
        if (self.granularity is Granularity.PER_AXIS) == (self.ch_axis is None) or self.granularity not in (
            Granularity.PER_TENSOR,
            Granularity.PER_AXIS,
        ):
            raise SpecError(
                "Derived parameters are per tensor, or per axis with a ch_axis.",
                field="granularity",
                expected="granularity=per_tensor, or per_axis and a ch_axis",
                got=f"granularity={self.granularity}, ch_axis={self.ch_axis}",
            )

    @property
    def group_size(self) -> None:
        """None, since derived parameters are never per group."""

    @property
    def zero_point_domain(self) -> ZeroPointDomain:
        """Always integer."""
        return ZeroPointDomain.INT

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {self.granularity} derived"


#: An output (the node) or one input of a node (producer, user).
EdgeOrNode: TypeAlias = Union["Node", tuple["Node", "Node"]]

#: A spec that says what the integers are.
OwnSpec: TypeAlias = QuantizationSpec | FixedQParamsQuantizationSpec | DerivedQuantizationSpec

#: All that may stand in an annotation.
AnySpec: TypeAlias = OwnSpec | SharedQuantizationSpec
