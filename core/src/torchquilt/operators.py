"""The operators by all the names they go under: ATen overload, functional, module class.

Export turns ``nn.Linear`` and ``F.linear`` into ``aten.linear.default``. A user may ask for any of
the three, a support table is written once for all of them, and matching reads only the overload. This
table is where the names meet. It is data, and importing it does not import torch.
"""

from __future__ import annotations

import difflib
import importlib
import operator
import sys
from typing import Any

import attrs

from torchquilt.errors import IntentError, PatternError


@attrs.frozen
class Operand:
    """One argument of an operator that may be quantized.

    Args:
        role: its role, see :data:`torchquilt.spec.config.ROLES`.
        position: index among the positional arguments of the overload.
        keyword: name of the argument in the overload's schema.
        many: the argument is a list of tensors, each of which has the role (``cat``).
    """

    role: str
    position: int
    keyword: str
    many: bool = False


@attrs.frozen
class Operator:
    """An operator, its names and its operands.

    Args:
        name: short name, used in the names of patterns.
        overloads: the ATen overloads that export may leave for it (``"aten.linear.default"``).
        operands: the arguments that may be quantized; others (strides, indices) are left out.
        functionals: full names of the Python functions that become it.
        modules: full names of the module classes that become it.
        moves_data: each element of its result is an element of a tensor that it reads. Dropout is among them:
            a model that still drops something is refused before anything is prepared.
    """

    name: str
    overloads: tuple[str, ...]
    operands: tuple[Operand, ...]
    functionals: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    moves_data: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        for overload in self.overloads:
            if overload.count(".") != 2:
                raise PatternError(
                    f"The operator {self.name} lists something that is no overload.",
                    expected="namespace.operator.overload, for example aten.linear.default",
                    got=overload,
                )

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the operands, each once, and the output's."""
        return tuple(dict.fromkeys([*(operand.role for operand in self.operands), "output_activation"]))


_INPUT = Operand("input_activation", 0, "input")
_UNARY = (Operand("input_activation", 0, "self"),)
_BINARY = (Operand("input_activation", 0, "self"), Operand("input_activation", 1, "other"))
_WEIGHTED = (_INPUT, Operand("weight", 1, "weight"), Operand("bias", 2, "bias"))
_MANY = (Operand("input_activation", 0, "tensors", many=True),)
_F = "torch.nn.functional"
_NN = "torch.nn.modules"


def _in_place_too(name: str, overload: str = "default") -> tuple[str, str]:
    return f"aten.{name}.{overload}", f"aten.{name}_.{overload}"


def _moving(
    name: str,
    overloads: str,
    functionals: str = "",
    modules: tuple[str, ...] = (),
    operands: tuple[Operand, ...] = _UNARY,
) -> Operator:
    """An operator that moves data. Overloads of ``aten`` and functions of ``torch`` in one text each."""
    return Operator(
        name,
        tuple(f"aten.{overload}" for overload in overloads.split()),
        operands,
        tuple(f"torch.{functional}" for functional in functionals.split()),
        modules,
        moves_data=True,
    )


LINEAR = Operator("linear", ("aten.linear.default",), _WEIGHTED, (f"{_F}.linear",), (f"{_NN}.linear.Linear",))
CONV1D = Operator(
    "conv1d",
    ("aten.conv1d.default", "aten.conv1d.padding"),
    _WEIGHTED,
    (f"{_F}.conv1d",),
    (f"{_NN}.conv.Conv1d",),
)
CONV2D = Operator(
    "conv2d",
    ("aten.conv2d.default", "aten.conv2d.padding"),
    _WEIGHTED,
    (f"{_F}.conv2d",),
    (f"{_NN}.conv.Conv2d",),
)
CONV_TRANSPOSE1D = Operator(
    "conv_transpose1d",
    ("aten.conv_transpose1d.default",),
    _WEIGHTED,
    (f"{_F}.conv_transpose1d",),
    (f"{_NN}.conv.ConvTranspose1d",),
)
CONV_TRANSPOSE2D = Operator(
    "conv_transpose2d",
    ("aten.conv_transpose2d.input",),
    _WEIGHTED,
    (f"{_F}.conv_transpose2d",),
    (f"{_NN}.conv.ConvTranspose2d",),
)
ADDMM = Operator(
    "addmm",
    ("aten.addmm.default",),
    (
        Operand("bias", 0, "self"),
        Operand("input_activation", 1, "mat1"),
        Operand("weight", 2, "mat2"),
    ),
    ("torch.addmm",),
)
MATMUL = Operator(
    "matmul",
    ("aten.matmul.default", "aten.mm.default"),
    (Operand("input_activation", 0, "self"), Operand("weight", 1, "other")),
    ("torch.matmul", "torch.mm", "operator.matmul"),
)
EMBEDDING = Operator(
    "embedding",
    ("aten.embedding.default",),
    (Operand("weight", 0, "weight"),),
    (f"{_F}.embedding",),
    (f"{_NN}.sparse.Embedding",),
)
ADD = Operator("add", _in_place_too("add", "Tensor"), _BINARY, ("torch.add", "operator.add"))
SUB = Operator(
    "sub",
    (*_in_place_too("sub", "Tensor"), *_in_place_too("subtract", "Tensor")),
    _BINARY,
    ("torch.sub", "torch.subtract", "operator.sub"),
)
RSUB = Operator("rsub", ("aten.rsub.Scalar", "aten.rsub.Tensor"), _BINARY, ("torch.rsub",))
DIV = Operator(
    "div",
    (
        *_in_place_too("div", "Tensor"),
        *_in_place_too("divide", "Tensor"),
        *_in_place_too("true_divide", "Tensor"),
    ),
    _BINARY,
    ("torch.div", "torch.divide", "torch.true_divide", "operator.truediv"),
)
MUL = Operator(
    "mul",
    (*_in_place_too("mul", "Tensor"), *_in_place_too("multiply", "Tensor")),
    _BINARY,
    ("torch.mul", "torch.multiply", "operator.mul"),
)
CAT = _moving(
    "cat",
    "cat.default concat.default concatenate.default",
    "cat concat concatenate",
    operands=_MANY,
)
STACK = _moving("stack", "stack.default", "stack", operands=_MANY)
HSTACK = _moving("hstack", "hstack.default", "hstack", operands=_MANY)
VSTACK = _moving("vstack", "vstack.default row_stack.default", "vstack row_stack", operands=_MANY)
DSTACK = _moving("dstack", "dstack.default", "dstack", operands=_MANY)
COLUMN_STACK = _moving("column_stack", "column_stack.default", "column_stack", operands=_MANY)
RELU = Operator(
    "relu", _in_place_too("relu"), _UNARY, (f"{_F}.relu", "torch.relu"), (f"{_NN}.activation.ReLU",)
)
RELU6 = Operator("relu6", _in_place_too("relu6"), _UNARY, (f"{_F}.relu6",), (f"{_NN}.activation.ReLU6",))
HARDTANH = Operator(
    "hardtanh", _in_place_too("hardtanh"), _UNARY, (f"{_F}.hardtanh",), (f"{_NN}.activation.Hardtanh",)
)
CLAMP = Operator(
    "clamp",
    (
        *_in_place_too("clamp"),
        *_in_place_too("clip"),
        *_in_place_too("clamp_min"),
        *_in_place_too("clamp_max"),
    ),
    _UNARY,
    ("torch.clamp", "torch.clip", "torch.clamp_min", "torch.clamp_max"),
)
MAX_POOL2D = Operator(
    "max_pool2d",
    ("aten.max_pool2d.default",),
    _UNARY,
    (f"{_F}.max_pool2d",),
    (f"{_NN}.pooling.MaxPool2d",),
    moves_data=True,
)
ADAPTIVE_AVG_POOL2D = Operator(
    "adaptive_avg_pool2d",
    ("aten.adaptive_avg_pool2d.default",),
    _UNARY,
    (f"{_F}.adaptive_avg_pool2d",),
    (f"{_NN}.pooling.AdaptiveAvgPool2d",),
)
MEAN = Operator("mean", ("aten.mean.dim",), _UNARY, ("torch.mean",))
PAD = Operator(
    "pad",
    ("aten.pad.default", "aten.constant_pad_nd.default"),
    _UNARY,
    (f"{_F}.pad",),
    (f"{_NN}.padding.ZeroPad2d",),
)
TO = Operator(
    "to",
    ("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other", "aten.type_as.default"),
    _UNARY,
)
DROPOUT = Operator(
    "dropout",
    _in_place_too("dropout"),
    (Operand("input_activation", 0, "input"),),
    (f"{_F}.dropout",),
    (f"{_NN}.dropout.Dropout",),
    moves_data=True,
)

# The shape alone.
VIEW = _moving("view", "view.default view_copy.default _unsafe_view.default", "view_copy")
RESHAPE = _moving("reshape", "reshape.default", "reshape")
VIEW_AS = _moving("view_as", "view_as.default reshape_as.default")
FLATTEN = _moving("flatten", "flatten.using_ints ravel.default", "flatten ravel", (f"{_NN}.flatten.Flatten",))
UNFLATTEN = _moving("unflatten", "unflatten.int", "unflatten", (f"{_NN}.flatten.Unflatten",))
SQUEEZE = _moving(
    "squeeze",
    "squeeze.dim squeeze.dims squeeze.default squeeze_copy.dim squeeze_copy.dims squeeze_copy.default",
    "squeeze squeeze_copy",
)
UNSQUEEZE = _moving("unsqueeze", "unsqueeze.default unsqueeze_copy.default", "unsqueeze unsqueeze_copy")
ATLEAST = _moving(
    "atleast",
    "atleast_1d.default atleast_2d.default atleast_3d.default",
    "atleast_1d atleast_2d atleast_3d",
)
# The order of dimensions.
PERMUTE = _moving("permute", "permute.default permute_copy.default", "permute permute_copy")
TRANSPOSE = _moving("transpose", "transpose.int", "transpose")
T = _moving("t", "t.default", "t")
SWAPAXES = _moving(
    "swapaxes",
    "swapaxes.default swapdims.default transpose_copy.int",
    "swapaxes swapdims transpose_copy",
)
MOVEDIM = _moving("movedim", "movedim.int movedim.intlist moveaxis.int moveaxis.intlist", "movedim moveaxis")
MATRIX_TRANSPOSE = _moving(
    "matrix_transpose",
    "mT.default numpy_T.default mH.default matrix_H.default adjoint.default t_copy.default",
    "adjoint t_copy",
)
# A part.
SLICE = _moving("slice", "slice.Tensor slice_copy.Tensor", "slice_copy")
NARROW = _moving("narrow", "narrow.default narrow_copy.default", "narrow narrow_copy")
SELECT = _moving("select", "select.int select_copy.int", "select select_copy")
# All of it, as it is or in another layout.
CONTIGUOUS = _moving("contiguous", "contiguous.default clone.default", "clone")
DETACH = _moving(
    "detach",
    "detach.default alias.default detach_copy.default alias_copy.default lift_fresh_copy.default",
    "detach detach_copy alias_copy",
)
# Elements in another order, and more than once.
PIXEL_SHUFFLE = _moving(
    "pixel_shuffle",
    "pixel_shuffle.default",
    "pixel_shuffle",
    (f"{_NN}.pixelshuffle.PixelShuffle",),
)
PIXEL_UNSHUFFLE = _moving(
    "pixel_unshuffle",
    "pixel_unshuffle.default",
    "pixel_unshuffle",
    (f"{_NN}.pixelshuffle.PixelUnshuffle",),
)
CHANNEL_SHUFFLE = _moving(
    "channel_shuffle",
    "channel_shuffle.default",
    "channel_shuffle",
    (f"{_NN}.channelshuffle.ChannelShuffle",),
)
FLIP = _moving("flip", "flip.default fliplr.default flipud.default", "flip fliplr flipud")
ROLL = _moving("roll", "roll.default", "roll")
INDEX_SELECT = _moving("index_select", "index_select.default", "index_select")
EXPAND = _moving(
    "expand",
    "expand.default expand_as.default expand_copy.default broadcast_to.default",
    "broadcast_to expand_copy",
)
REPEAT = _moving("repeat", "repeat.default tile.default", "tile")

#: Every operator that torchquilt knows by name. A backend may use others of its own.
OPERATORS: tuple[Operator, ...] = (
    LINEAR, ADDMM, MATMUL, CONV1D, CONV2D, CONV_TRANSPOSE1D, CONV_TRANSPOSE2D, EMBEDDING, ADD, SUB, RSUB, MUL,
    DIV, CAT, STACK, HSTACK, VSTACK, DSTACK, COLUMN_STACK, RELU, RELU6, HARDTANH, CLAMP, MAX_POOL2D,
    ADAPTIVE_AVG_POOL2D, MEAN, VIEW, RESHAPE, VIEW_AS, FLATTEN, UNFLATTEN, CONTIGUOUS, DETACH, TO, PERMUTE,
    TRANSPOSE, T, SWAPAXES, MOVEDIM, MATRIX_TRANSPOSE, SLICE, NARROW, SELECT, SQUEEZE, UNSQUEEZE, ATLEAST,
    PAD, PIXEL_SHUFFLE, PIXEL_UNSHUFFLE, CHANNEL_SHUFFLE, FLIP, ROLL, INDEX_SELECT, EXPAND, REPEAT, DROPOUT,
)  # fmt: skip


@attrs.frozen
class ObjectType:
    """Object type that a user means, as text.

    Args:
        kind: ``module`` (a class), ``overload`` (one or more ATen overloads) or ``operator``
            (a functional or a short name: the overloads of that operator).
        name: the name as the user would recognise it.
        overloads: for the kinds that are about operators, the overloads that are meant; empty for a function
            of torch that is not one operator, of which only export can tell what it becomes.
    """

    kind: str
    name: str
    overloads: tuple[str, ...] = ()

    def is_of(self, packet: str) -> bool:
        """Whether an overload of this operator (``aten.linear``) is meant."""
        return any(overload.rpartition(".")[0] == packet for overload in self.overloads)


def object_type(subject: object, known: tuple[Operator, ...] = OPERATORS) -> ObjectType:
    """Understand a module class, a functional, an ATen overload or packet, or a name of one of these.

    What is not in the table is asked of torch, which a name that is not there imports.

    Raises:
        IntentError: it is none of these; the error names what comes nearest.
    """
    if isinstance(subject, type):
        return _class_type(subject)
    text = subject if isinstance(subject, str) else _full_name(subject)
    if _is_overload(subject, text):
        return ObjectType("overload", text, (text,))
    packets = tuple(o for op in known for o in op.overloads if o.rpartition(".")[0] == text)
    if packets or _is_packet(subject):
        return ObjectType("overload", text, packets or _overloads_of_packet(subject))
    for op in known:
        if text in (op.name, *op.functionals):
            return ObjectType("operator", text, op.overloads)
        if text in op.modules or (isinstance(subject, str) and text in _short_names(op)):
            return ObjectType("module", op.modules[0])
    found = _named_in_torch(text) if isinstance(subject, str) else _of_function(subject)
    if found is not None:
        return found
    names = [name for op in known for name in (op.name, *op.functionals, *op.overloads, *_short_names(op))]
    near = difflib.get_close_matches(text, names, n=3)
    raise IntentError(
        f"{text!r} is not a type that a rule can be about.",
        expected="a module class, a functional such as torch.nn.functional.linear, or an ATen operator "
        "such as torch.ops.aten.linear.default",
        got=repr(subject),
        remedy=f"did you mean {' or '.join(near)}?" if near else "name the ATen operator itself",
    )


def class_called(name: str) -> type | None:
    """The class of a full name, if it has been imported and stands in its module."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:end]))
        if module is not None:
            found = attribute_at(module, parts[end:])
            return found if isinstance(found, type) else None
    return None


def attribute_at(owner: object, path: list[str]) -> object:
    """Follow a path of attributes; None where it ends too early."""
    for name in path:
        owner = getattr(owner, name, None) if name and owner is not None else None
    return owner


def _class_type(cls: type) -> ObjectType:
    return ObjectType("module", f"{cls.__module__}.{cls.__qualname__}")


def _full_name(subject: object) -> str:
    """The name by which people import a function of torch.

    Many are builtins that live elsewhere than where they are imported from (``F.linear`` says that it
    is ``torch._C._nn.linear``, ``F.conv2d`` that it is ``torch.conv2d``), so the last part of the name
    decides, within the namespaces of torch.
    """
    if type(subject).__name__ in ("OpOverload", "OpOverloadPacket"):
        return str(subject)
    name = getattr(subject, "__name__", "")
    module = getattr(subject, "__module__", None) or "torch"
    if module in _FUNCTION_NAMESPACES:
        for known in OPERATORS:
            for functional in known.functionals:
                if functional.rpartition(".")[2] == name:
                    return functional
    return _public_name(subject) or f"{module}.{name}"


_FUNCTION_NAMESPACES = ("torch", "torch.functional", _F, "torch._C._nn", "torch._C", "_operator", "operator")


def _public_name(function: object) -> str:
    """Name by which people import a function of torch; empty where that is not known."""
    name = getattr(function, "__name__", "")
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    places = {place: sys.modules.get(place) for place in (_F, "torch", "operator")}
    for place, owner in {**places, "torch.Tensor": tensor}.items():
        if name and callable(function) and getattr(owner, name, None) is function:
            return f"{place}.{name}"
    return ""


def _named_in_torch(text: str) -> ObjectType | None:
    """Look a name that is in no table up in torch: a path, a class of ``nn``, an operator of ATen."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    first, _, rest = text.partition(".")
    roots = {"torch": torch, "nn": torch.nn, "aten": torch.ops.aten, "operator": operator}
    found = attribute_at(roots.get(first), rest.split(".")) if rest else getattr(torch.nn, text, None)
    if isinstance(found, type):
        return _class_type(found)
    overloads = () if rest else _overloads_called(text)
    return ObjectType("operator", text, overloads) if overloads else _of_function(found)


def _of_function(subject: object) -> ObjectType | None:
    """A function of torch, or one of Python's operators; None for anything else."""
    if _is_packet(subject) or type(subject).__name__ == "OpOverload":
        return object_type(subject)
    public = _public_name(subject)
    module = getattr(subject, "__module__", None) or public
    if not callable(subject) or module.partition(".")[0] not in ("torch", "operator", "_operator"):
        return None
    name = getattr(subject, "__name__", "")
    return ObjectType("operator", public or f"{module}.{name}", _overloads_called(name)) if name else None


def _overloads_called(name: str) -> tuple[str, ...]:
    """The overloads of the ATen operator of this name, those that work in place among them."""
    aten = importlib.import_module("torch").ops.aten
    name = name.rstrip("_")
    packets = (getattr(aten, called, None) for called in (name, f"{name}_") if name)
    return tuple(o for packet in packets if packet is not None for o in _overloads_of_packet(packet))


def _is_overload(subject: object, text: str) -> bool:
    """An overload itself, or its name ``namespace.operator.overload``; modules of torch look alike."""
    if type(subject).__name__ == "OpOverload":
        return True
    return text.count(".") == 2 and text.split(".")[0] not in ("torch", "nn", "operator")


def _is_packet(subject: object) -> bool:
    return type(subject).__name__ == "OpOverloadPacket"


def _overloads_of_packet(subject: object) -> tuple[str, ...]:
    names: list[str] = subject.overloads()  # type: ignore[attr-defined]
    return tuple(f"{subject}.{name}" for name in names)


def _short_names(known: Operator) -> tuple[str, ...]:
    """``torch.nn.Linear`` and ``nn.Linear`` for the class whose full name is longer."""
    classes = [module.rpartition(".")[2] for module in known.modules]
    return tuple(prefix + name for name in classes for prefix in ("torch.nn.", "nn.", ""))
