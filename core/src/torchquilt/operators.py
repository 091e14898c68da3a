"""The operators by all the names they go under: ATen overload, functional, module class.

Export turns ``nn.Linear`` and ``F.linear`` into ``aten.linear.default``. A user may ask for any of
the three, a support table is written once for all of them, and matching reads only the overload. This
table is where the names meet. It is data, and importing it does not import torch.
"""

from __future__ import annotations

import difflib

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
EMBEDDING = Operator(
    "embedding",
    ("aten.embedding.default",),
    (Operand("weight", 0, "weight"),),
    (f"{_F}.embedding",),
    (f"{_NN}.sparse.Embedding",),
)
ADD = Operator("add", _in_place_too("add", "Tensor"), _BINARY, ("torch.add", "operator.add"))
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
PERMUTE = Operator("permute", ("aten.permute.default",), _UNARY, ("torch.permute",))
TRANSPOSE = Operator("transpose", ("aten.transpose.int",), _UNARY, ("torch.transpose",))
SLICE = Operator("slice", ("aten.slice.Tensor",), _UNARY)
SQUEEZE = Operator("squeeze", ("aten.squeeze.dim", "aten.squeeze.dims"), _UNARY, ("torch.squeeze",))
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
    LINEAR, CONV1D, CONV2D, EMBEDDING, ADD, MUL, CAT, RELU, RELU6, HARDTANH, CLAMP, MAX_POOL2D,
    ADAPTIVE_AVG_POOL2D, MEAN, VIEW, RESHAPE, FLATTEN, PERMUTE, TRANSPOSE, SLICE, SQUEEZE, UNSQUEEZE, DROPOUT,
)  # fmt: skip


@attrs.frozen
class ObjectType:
    """What a user means by an object type, as text.

    Args:
        kind: ``module`` (a class), ``overload`` (one or more ATen overloads) or ``operator``
            (a functional or a short name: the overloads of that operator).
        name: the name as the user would recognise it.
        overloads: for the kinds that are about operators, the overloads that are meant.
    """

    kind: str
    name: str
    overloads: tuple[str, ...] = ()

    def is_of(self, packet: str) -> bool:
        """Whether an overload of this operator (``aten.linear``) is meant."""
        return any(overload.rpartition(".")[0] == packet for overload in self.overloads)


def object_type(subject: object, known: tuple[Operator, ...] = OPERATORS) -> ObjectType:
    """Understand a module class, a functional, an ATen overload or packet, or a name of one of these.

    Raises:
        IntentError: it is none of these; the error names what comes nearest.
    """
    if isinstance(subject, type):
        return ObjectType("module", f"{subject.__module__}.{subject.__qualname__}")
    text = subject if isinstance(subject, str) else _full_name(subject)
    if _is_overload(subject, text):
        return ObjectType("overload", text, (text,))
    packets = tuple(o for op in known for o in op.overloads if o.rpartition(".")[0] == text)
    if packets or _is_packet(subject):
        return ObjectType("overload", text, packets or _overloads_of_packet(subject))
    for operator in known:
        if text in (operator.name, *operator.functionals):
            return ObjectType("operator", text, operator.overloads)
        if text in operator.modules or (isinstance(subject, str) and text in _short_names(operator)):
            return ObjectType("module", operator.modules[0])
    names = [name for op in known for name in (op.name, *op.functionals, *op.overloads, *_short_names(op))]
    near = difflib.get_close_matches(text, names, n=3)
    raise IntentError(
        f"{text!r} is not a type that a rule can be about.",
        expected="a module class, a functional such as torch.nn.functional.linear, or an ATen operator "
        "such as torch.ops.aten.linear.default",
        got=repr(subject),
        remedy=f"did you mean {' or '.join(near)}?" if near else "name the ATen operator itself",
    )


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
        for operator in OPERATORS:
            for functional in operator.functionals:
                if functional.rpartition(".")[2] == name:
                    return functional
    return f"{module}.{name}"


_FUNCTION_NAMESPACES = ("torch", "torch.functional", _F, "torch._C._nn", "torch._C", "_operator", "operator")


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


def _short_names(operator: Operator) -> tuple[str, ...]:
    """``torch.nn.Linear`` and ``nn.Linear`` for the class whose full name is longer."""
    classes = [module.rpartition(".")[2] for module in operator.modules]
    return tuple(prefix + name for name in classes for prefix in ("torch.nn.", "nn.", ""))
