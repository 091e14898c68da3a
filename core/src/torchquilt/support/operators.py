"""The operators by all the names they go under: ATen overload, functional, module class.

Export turns ``nn.Linear`` and ``F.linear`` into ``aten.linear.default``. A user may ask for any of
the three, a support table is written once for all of them, and matching reads only the overload. This
table is where the names meet. It is data, and importing it does not import torch.
"""

from __future__ import annotations

import attrs

from torchquilt.errors import PatternError
from torchquilt.spec.config import Role


@attrs.frozen
class Operand:
    """One argument of an operator that may be quantized.

    Args:
        role: its role, see :data:`torchquilt.spec.config.ROLES`.
        position: index among the positional arguments of the overload.
        keyword: name of the argument in the overload's schema.
        is_list: the argument is a list of tensors, each of which has the role (``cat``).
    """

    role: Role
    position: int
    keyword: str
    is_list: bool = False


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
    def roles(self) -> tuple[Role, ...]:
        """The roles of the operands, each once, and the output's."""
        return tuple(dict.fromkeys([*(operand.role for operand in self.operands), "output_activation"]))


_INPUT = Operand("input_activation", 0, "input")
_UNARY = (Operand("input_activation", 0, "self"),)
_BINARY = (Operand("input_activation", 0, "self"), Operand("input_activation", 1, "other"))
_WEIGHTED = (_INPUT, Operand("weight", 1, "weight"), Operand("bias", 2, "bias"))
_MANY = (Operand("input_activation", 0, "tensors", is_list=True),)
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
CONV3D = Operator(
    "conv3d",
    ("aten.conv3d.default", "aten.conv3d.padding"),
    _WEIGHTED,
    (f"{_F}.conv3d",),
    (f"{_NN}.conv.Conv3d",),
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
LEAKY_RELU = Operator(
    "leaky_relu",
    _in_place_too("leaky_relu"),
    _UNARY,
    (f"{_F}.leaky_relu",),
    (f"{_NN}.activation.LeakyReLU",),
)
SIGMOID = Operator(
    "sigmoid",
    _in_place_too("sigmoid"),
    _UNARY,
    ("torch.sigmoid", f"{_F}.sigmoid"),
    (f"{_NN}.activation.Sigmoid",),
)
SILU = Operator("silu", _in_place_too("silu"), _UNARY, (f"{_F}.silu",), (f"{_NN}.activation.SiLU",))
HARDSWISH = Operator(
    "hardswish",
    _in_place_too("hardswish"),
    _UNARY,
    (f"{_F}.hardswish",),
    (f"{_NN}.activation.Hardswish",),
)
GELU = Operator("gelu", _in_place_too("gelu"), _UNARY, (f"{_F}.gelu",), (f"{_NN}.activation.GELU",))
SOFTMAX = Operator(
    "softmax",
    ("aten.softmax.int", "aten._softmax.default"),
    _UNARY,
    ("torch.softmax", f"{_F}.softmax"),
    (f"{_NN}.activation.Softmax",),
)
WHERE = Operator(
    "where",
    ("aten.where.self",),
    (Operand("input_activation", 1, "self"), Operand("input_activation", 2, "other")),
    ("torch.where",),
)
MAX_POOL1D = Operator(
    "max_pool1d",
    ("aten.max_pool1d.default",),
    _UNARY,
    (f"{_F}.max_pool1d",),
    (f"{_NN}.pooling.MaxPool1d",),
    moves_data=True,
)
MAX_POOL2D = Operator(
    "max_pool2d",
    ("aten.max_pool2d.default",),
    _UNARY,
    (f"{_F}.max_pool2d",),
    (f"{_NN}.pooling.MaxPool2d",),
    moves_data=True,
)
MAX_POOL3D = Operator(
    "max_pool3d",
    ("aten.max_pool3d.default",),
    _UNARY,
    (f"{_F}.max_pool3d",),
    (f"{_NN}.pooling.MaxPool3d",),
    moves_data=True,
)
AVG_POOL1D, AVG_POOL2D, AVG_POOL3D = (
    Operator(
        f"avg_pool{rank}d",
        (f"aten.avg_pool{rank}d.default",),
        _UNARY,
        (f"{_F}.avg_pool{rank}d",),
        (f"{_NN}.pooling.AvgPool{rank}d",),
    )
    for rank in (1, 2, 3)
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
    LINEAR, ADDMM, MATMUL, CONV1D, CONV2D, CONV3D, CONV_TRANSPOSE1D, CONV_TRANSPOSE2D, EMBEDDING, ADD, SUB,
    RSUB, MUL, DIV, CAT, STACK, HSTACK, VSTACK, DSTACK, COLUMN_STACK, RELU, RELU6, HARDTANH, CLAMP,
    LEAKY_RELU, SIGMOID, SILU,
    HARDSWISH, GELU, SOFTMAX, WHERE, MAX_POOL1D, MAX_POOL2D, MAX_POOL3D, AVG_POOL1D, AVG_POOL2D,
    AVG_POOL3D, ADAPTIVE_AVG_POOL2D, MEAN, VIEW, RESHAPE, VIEW_AS, FLATTEN, UNFLATTEN, CONTIGUOUS, DETACH,
    TO, PERMUTE, TRANSPOSE, T, SWAPAXES, MOVEDIM, MATRIX_TRANSPOSE, SLICE, NARROW, SELECT, SQUEEZE,
    UNSQUEEZE, ATLEAST, PAD, PIXEL_SHUFFLE, PIXEL_UNSHUFFLE, CHANNEL_SHUFFLE, FLIP, ROLL, INDEX_SELECT,
    EXPAND, REPEAT, DROPOUT,
)  # fmt: skip
