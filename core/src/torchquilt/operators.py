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
        role: its role, see :data:`torchquilt.config.ROLES`.
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
    """

    name: str
    overloads: tuple[str, ...]
    operands: tuple[Operand, ...]
    functionals: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()

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
_F = "torch.nn.functional"
_NN = "torch.nn.modules"


def _in_place_too(name: str, overload: str = "default") -> tuple[str, str]:
    return f"aten.{name}.{overload}", f"aten.{name}_.{overload}"


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
SUB = Operator("sub", _in_place_too("sub", "Tensor"), _BINARY, ("torch.sub", "operator.sub"))
RSUB = Operator("rsub", ("aten.rsub.Scalar",), _BINARY, ("torch.rsub",))
DIV = Operator("div", _in_place_too("div", "Tensor"), _BINARY, ("torch.div", "operator.truediv"))
MUL = Operator("mul", _in_place_too("mul", "Tensor"), _BINARY, ("torch.mul", "operator.mul"))
CAT = Operator(
    "cat",
    ("aten.cat.default", "aten.concat.default", "aten.concatenate.default"),
    (Operand("input_activation", 0, "tensors", many=True),),
    ("torch.cat", "torch.concat", "torch.concatenate"),
)
RELU = Operator(
    "relu", _in_place_too("relu"), _UNARY, (f"{_F}.relu", "torch.relu"), (f"{_NN}.activation.ReLU",)
)
RELU6 = Operator("relu6", _in_place_too("relu6"), _UNARY, (f"{_F}.relu6",), (f"{_NN}.activation.ReLU6",))
HARDTANH = Operator(
    "hardtanh", _in_place_too("hardtanh"), _UNARY, (f"{_F}.hardtanh",), (f"{_NN}.activation.Hardtanh",)
)
CLAMP = Operator(
    "clamp", (*_in_place_too("clamp"), *_in_place_too("clip")), _UNARY, ("torch.clamp", "torch.clip")
)
MAX_POOL2D = Operator(
    "max_pool2d", ("aten.max_pool2d.default",), _UNARY, (f"{_F}.max_pool2d",), (f"{_NN}.pooling.MaxPool2d",)
)
ADAPTIVE_AVG_POOL2D = Operator(
    "adaptive_avg_pool2d",
    ("aten.adaptive_avg_pool2d.default",),
    _UNARY,
    (f"{_F}.adaptive_avg_pool2d",),
    (f"{_NN}.pooling.AdaptiveAvgPool2d",),
)
MEAN = Operator("mean", ("aten.mean.dim",), _UNARY, ("torch.mean",))
VIEW = Operator("view", ("aten.view.default",), _UNARY)
RESHAPE = Operator("reshape", ("aten.reshape.default",), _UNARY, ("torch.reshape",))
FLATTEN = Operator(
    "flatten", ("aten.flatten.using_ints",), _UNARY, ("torch.flatten",), (f"{_NN}.flatten.Flatten",)
)
CONTIGUOUS = Operator(
    "contiguous", ("aten.contiguous.default", "aten.clone.default"), _UNARY, ("torch.clone",)
)
TO = Operator(
    "to",
    ("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.to.other", "aten.type_as.default"),
    _UNARY,
)
T = Operator("t", ("aten.t.default",), _UNARY, ("torch.t",))
SELECT = Operator("select", ("aten.select.int",), _UNARY, ("torch.select",))
STACK = Operator(
    "stack",
    ("aten.stack.default",),
    (Operand("input_activation", 0, "tensors", many=True),),
    ("torch.stack",),
)
PAD = Operator(
    "pad",
    ("aten.pad.default", "aten.constant_pad_nd.default"),
    _UNARY,
    (f"{_F}.pad",),
    (f"{_NN}.padding.ZeroPad2d",),
)
PERMUTE = Operator("permute", ("aten.permute.default",), _UNARY, ("torch.permute",))
TRANSPOSE = Operator("transpose", ("aten.transpose.int",), _UNARY, ("torch.transpose",))
SLICE = Operator("slice", ("aten.slice.Tensor",), _UNARY)
SQUEEZE = Operator(
    "squeeze",
    ("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default"),
    _UNARY,
    ("torch.squeeze",),
)
UNSQUEEZE = Operator("unsqueeze", ("aten.unsqueeze.default",), _UNARY, ("torch.unsqueeze",))
DROPOUT = Operator(
    "dropout",
    _in_place_too("dropout"),
    (Operand("input_activation", 0, "input"),),
    (f"{_F}.dropout",),
    (f"{_NN}.dropout.Dropout",),
)

#: Every operator that torchquilt knows by name. A backend may use others of its own.
OPERATORS: tuple[Operator, ...] = (
    LINEAR, ADDMM, MATMUL, CONV1D, CONV2D, CONV_TRANSPOSE1D, CONV_TRANSPOSE2D, EMBEDDING, ADD, SUB, RSUB, MUL,
    DIV, CAT, STACK, RELU, RELU6, HARDTANH, CLAMP, MAX_POOL2D, ADAPTIVE_AVG_POOL2D, MEAN, VIEW, RESHAPE,
    FLATTEN, CONTIGUOUS, TO, PERMUTE, TRANSPOSE, T, SLICE, SELECT, SQUEEZE, UNSQUEEZE, PAD, DROPOUT,
)  # fmt: skip


@attrs.frozen
class ObjectType:
    """What a user means by an object type, as text.

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
    """What a path of attributes leads to, or None."""
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
    """Where people import a function of torch from; empty where that is not known."""
    name = getattr(function, "__name__", "")
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    places = {place: sys.modules.get(place) for place in (_F, "torch", "operator")}
    for place, owner in {**places, "torch.Tensor": tensor}.items():
        if name and callable(function) and getattr(owner, name, None) is function:
            return f"{place}.{name}"
    return ""


def _named_in_torch(text: str) -> ObjectType | None:
    """What a name that is in no table means in torch: a path, a class of ``nn``, an operator of ATen."""
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
