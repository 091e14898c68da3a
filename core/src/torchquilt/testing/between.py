"""Operators between two static layers: what the ledger says of each is what runs.

A delegate may take an operator in float for a quantized one, since it reads what is dequantized and what it
returns is quantized; or one that it is decomposed into. So operators of many kinds are put between two
layers, many in one program, and looked at in the lowered program.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from torchquilt.errors import LoweringError
from torchquilt.ledger.rows import Row
from torchquilt.lowering import LoweredProgram, lower
from torchquilt.pt2e.calibration.calibrate import calibrate
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.prepare import prepare_pt2e
from torchquilt.spec.config import QuantizationConfig
from torchquilt.support import operators as ops
from torchquilt.support.table import SupportTable
from torchquilt.testing.configs import configs_of
from torchquilt.testing.operators import uniform
from torchquilt.testing.subject import Subject
from torchquilt.testing.targets import AS_CLAIMED
from torchquilt.testing.trials import sqnr

Function: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"

#: What program and quantized model have to agree to, in dB.
LEAST_SQNR = 40.0
#: What is left of the float model where an operator is continuous, in dB.
LEAST_SQNR_TO_FLOAT = 10.0
_INDEX = torch.tensor([2, 0, 1])

#: Operators of matrices of 4 rows and 8 columns.
MATRICES: Mapping[str, Function] = {
    # Joined.
    "cat": lambda y: torch.cat([y, 3 * y], 1),
    "concat": lambda y: torch.concat([y, 3 * y]),
    "cat with an empty one": lambda y: torch.cat([y[:0], y, 3 * y]),
    "stack": lambda y: torch.stack([y, 3 * y], 1),
    "hstack": lambda y: torch.hstack([y, 3 * y]),
    "vstack": lambda y: torch.vstack([y, 3 * y]),
    "row_stack": lambda y: torch.row_stack([y, 3 * y]),
    "dstack": lambda y: torch.dstack([y, 3 * y]),
    "column_stack": lambda y: torch.column_stack([y, 3 * y]),
    "column_stack of vectors": lambda y: torch.column_stack([y.flatten(), 3 * y.flatten()]),
    "block_diag": lambda y: torch.ops.aten.block_diag.default([y, 3 * y]),
    # Moved.
    "permute": lambda y: y.permute(1, 0),
    "permute_copy": lambda y: torch.permute_copy(y, [1, 0]),
    "transpose": lambda y: y.transpose(0, 1),
    "transpose_copy": lambda y: torch.transpose_copy(y, 0, 1),
    "swapaxes": lambda y: y.swapaxes(0, 1),
    "swapdims": lambda y: y.swapdims(0, 1),
    "movedim": lambda y: y.movedim(0, 1),
    "moveaxis": lambda y: y.moveaxis(0, 1),
    "t": lambda y: y.t(),
    "t_copy": torch.t_copy,
    "T": lambda y: y.T,
    "mT": lambda y: y.mT,
    "H": lambda y: y.H,
    "mH": lambda y: y.mH,
    "adjoint": torch.adjoint,
    "einsum that transposes": lambda y: torch.einsum("ij->ji", y),
    "view": lambda y: y.view(2, 16),
    "view_copy": lambda y: torch.view_copy(y, [2, 16]),
    "view_as": lambda y: y.view_as(y),
    "reshape": lambda y: y.reshape(2, 16),
    "reshape_as": lambda y: y.reshape_as(y),
    "flatten": lambda y: y.flatten(),
    "ravel": lambda y: y.ravel(),
    "transposed and flattened": lambda y: y.t().flatten(),
    "unflatten": nn.Unflatten(1, (2, 4)),
    "squeeze": lambda y: y[:1].squeeze(0),
    "squeeze without a dimension": lambda y: y[:1].squeeze(),
    "squeeze_copy": lambda y: torch.squeeze_copy(y[:1], 0),
    "unsqueeze": lambda y: y.unsqueeze(1),
    "unsqueeze_copy": lambda y: torch.unsqueeze_copy(y, 0),
    "atleast_3d": torch.atleast_3d,
    "contiguous": lambda y: y.t().contiguous(),
    "clone": lambda y: y.clone(),
    "detach": lambda y: y.detach(),
    "alias": torch.ops.aten.alias.default,
    "to": lambda y: y.to(torch.float32),
    "type_as": lambda y: y.type_as(y),
    "dropout": lambda y: F.dropout(y, training=False),
    "identity": nn.Identity(),
    # Parts.
    "slice": lambda y: y[1:3],
    "slice with a step": lambda y: y[::2],
    "slice_copy": lambda y: torch.slice_copy(y, 0, 0, 2),
    "narrow": lambda y: y.narrow(0, 1, 2),
    "narrow_copy": lambda y: torch.narrow_copy(y, 0, 1, 2),
    "select": lambda y: y[1],
    "select_copy": lambda y: torch.select_copy(y, 0, 1),
    "chunk": lambda y: y.chunk(2, 1)[1],
    "split": lambda y: torch.ops.aten.split.Tensor(y, 3, 1)[1],
    "split with sizes": lambda y: y.split_with_sizes([3, 5], 1)[1],
    "tensor_split": lambda y: y.tensor_split(3, 1)[1],
    "tensor_split at indices": lambda y: y.tensor_split((1, 3), 1)[1],
    "hsplit": lambda y: y.hsplit(2)[1],
    "vsplit": lambda y: y.vsplit(2)[1],
    "unbind": lambda y: y.unbind(0)[1],
    "unsafe_chunk": lambda y: y.unsafe_chunk(2, 1)[1],
    "unsafe_split": lambda y: y.unsafe_split(3, 1)[0],
    "diagonal": lambda y: y.diagonal(),
    "tril": lambda y: y.tril(),
    "index_select": lambda y: y.index_select(0, _INDEX),
    "gather": lambda y: y.gather(0, _INDEX[None, :].expand(2, 3)),
    "take_along_dim": lambda y: y.take_along_dim(_INDEX[:, None], 0),
    "index": lambda y: y[_INDEX],
    # Repeated, and in another order.
    "expand": lambda y: y.expand(2, 4, 8),
    "expand to its own shape": lambda y: y.expand_as(y),
    "broadcast_to": lambda y: y.broadcast_to(2, 4, 8),
    "repeat": lambda y: y.repeat(2, 1),
    "tile": lambda y: y.tile(2, 1),
    "repeat_interleave": lambda y: y.repeat_interleave(2, 0),
    "flip": lambda y: y.flip(0),
    "fliplr": lambda y: y.fliplr(),
    "rot90": lambda y: y.rot90(),
    "roll": lambda y: y.roll(1, 0),
    "unfold": lambda y: y.unfold(0, 2, 2),
    "pad with zeros": lambda y: F.pad(y, (1, 2)),
    "pad with ones": lambda y: F.pad(y, (1, 2), value=1.0),
    # Computed.
    "add": lambda y: y + 3 * y.t().reshape(4, 8),
    "add of itself": lambda y: y + y,
    "add of a number": lambda y: y + 1.5,
    "add with alpha": lambda y: torch.add(y, y.flip(0), alpha=2),
    "sub": lambda y: y - 3 * y.t().reshape(4, 8),
    "subtract": lambda y: torch.subtract(y, 3 * y.t().reshape(4, 8)),
    "rsub": lambda y: torch.rsub(y, 3 * y.t().reshape(4, 8)),
    "rsub of a number": lambda y: 1.0 - y,
    "mul": lambda y: y * (y + 1),
    "multiply": lambda y: torch.multiply(y, y + 1),
    "mul by a number": lambda y: y * 0.3,
    "div": lambda y: y / (y.abs() + 1),
    "div by a number": lambda y: y / 0.3,
    "divide": lambda y: torch.divide(y, 0.3),
    "true_divide": lambda y: torch.true_divide(y, 0.3),
    "addcmul": lambda y: torch.addcmul(y, y, y + 1),
    "addcdiv": lambda y: torch.addcdiv(y, y, y.abs() + 1),
    "lerp": lambda y: torch.lerp(y, 3 * y, 0.25),
    "minimum": lambda y: torch.minimum(y, 3 * y),
    "maximum": lambda y: torch.maximum(y, 3 * y),
    "where": lambda y: torch.where(_INDEX[:1, None] > 1, y, 3 * y),
    "masked_fill": lambda y: y.masked_fill(torch.eye(4, 8, dtype=torch.bool), 0.0),
    "matmul": lambda y: y @ y.t(),
    "relu": torch.relu,
    "relu6": F.relu6,
    "hardtanh": lambda y: F.hardtanh(y, -0.25, 0.5),
    "clamp": lambda y: y.clamp(-0.25, 0.5),
    "clamp with one bound": lambda y: y.clamp(max=0.5),
    "clamp_min": lambda y: y.clamp_min(0.1),
    "clamp_max": lambda y: y.clamp_max(0.5),
    "clip": lambda y: y.clip(-0.25, 0.5),
    "threshold": lambda y: F.threshold(y, 0.0, 0.0),
    "leaky_relu": F.leaky_relu,
    "prelu": lambda y: F.prelu(y, torch.tensor([0.2])),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda y: F.softshrink(y, 0.1),
    "logsigmoid": F.logsigmoid,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": torch.exp,
    "log": lambda y: torch.log(y.abs() + 1),
    "sqrt": lambda y: torch.sqrt(y.abs() + 1),
    "rsqrt": lambda y: torch.rsqrt(y.abs() + 1),
    "reciprocal": lambda y: torch.reciprocal(y.abs() + 1),
    "pow": lambda y: y**3,
    "square": torch.square,
    "abs": torch.abs,
    "neg": torch.neg,
    "softmax": lambda y: y.softmax(-1),
    "log_softmax": lambda y: y.log_softmax(-1),
    "cumsum": lambda y: y.cumsum(1),
    "mean": lambda y: y.mean(1, keepdim=True),
    "mean of all": lambda y: y.mean(),
    "sum": lambda y: y.sum(0),
    "amax": lambda y: y.amax(0),
    "amin": lambda y: y.amin(0),
    "max over a dimension": lambda y: y.max(0).values,
    "var": lambda y: y.var(1, keepdim=True),
    "layer_norm": lambda y: F.layer_norm(y, (8,)),
    "normalize": lambda y: F.normalize(y),
    "argmax": lambda y: y.argmax(1),
    "greater": lambda y: y > 0.1,
}
#: Operators of images of 4 channels, 6 high and 6 wide.
IMAGES: Mapping[str, Function] = {
    "permute of an image": lambda y: y.permute(0, 2, 3, 1),
    "flatten of an image": lambda y: y.flatten(1),
    "permute and flatten": lambda y: y.permute(0, 2, 3, 1).flatten(1),
    "cat of images": lambda y: torch.cat([y, 3 * y], 1),
    "hstack of images": lambda y: torch.hstack([y, 3 * y]),
    "dstack of images": lambda y: torch.dstack([y, 3 * y]),
    "shuffle by hand": lambda y: y.view(2, 2, 2, 6, 6).transpose(1, 2).reshape(2, 4, 6, 6),
    "channel_shuffle": lambda y: torch.channel_shuffle(y, 2),
    "pixel_shuffle": lambda y: F.pixel_shuffle(y, 2),
    "pixel_unshuffle": lambda y: F.pixel_unshuffle(y, 2),
    "windows": lambda y: y.view(2, 4, 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(8, 3, 3, 4),
    "roll of an image": lambda y: y.roll((1, 1), (2, 3)),
    "flip of an image": lambda y: y.flip(3),
    "max_pool2d": lambda y: F.max_pool2d(y, 2),
    "max_pool2d in ceil mode": lambda y: F.max_pool2d(y, 4, 3, ceil_mode=True),
    "adaptive_max_pool2d": lambda y: F.adaptive_max_pool2d(y, 1),
    "avg_pool2d": lambda y: F.avg_pool2d(y, 2),
    "adaptive_avg_pool2d": lambda y: F.adaptive_avg_pool2d(y, 1),
    "adaptive_avg_pool2d to 2 x 2": lambda y: F.adaptive_avg_pool2d(y, 2),
    "mean of an image": lambda y: y.mean((2, 3), keepdim=True),
    "mean of an image without its dimensions": lambda y: y.mean((2, 3)),
    "upsample_nearest": lambda y: F.interpolate(y, scale_factor=2),
    "upsample_bilinear": lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"),
    "pad of an image": lambda y: F.pad(y, (1, 1, 1, 1)),
    "pad by reflection": lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"),
    "group_norm": lambda y: F.group_norm(y, 2),
    "instance_norm": F.instance_norm,
    "prelu of an image": lambda y: F.prelu(y, torch.tensor([0.2])),
    "glu": lambda y: F.glu(y, 1),
    "unfold to columns": lambda y: F.unfold(y, 3),
    "select of an image": lambda y: y[:, 1],
    "unbind of an image": lambda y: y.unbind(1)[2],
    # Decomposed into operators that read one image several times, each in the order in memory that it needs.
    "mish of an image": F.mish,
    "softplus of an image": F.softplus,
    "attention of an image to itself": lambda y: F.scaled_dot_product_attention(y, y, y),
    "attention to an image": lambda y: F.scaled_dot_product_attention(3 * y, y, y),
    "scaled by channels": lambda y: y * y.mean((2, 3), keepdim=True).sigmoid(),
}
#: Operators that one step of a quantized tensor can change by much.
_JUMPS = frozenset(
    {"argmax", "greater", "threshold", "normalize", "layer_norm", "instance_norm", "group_norm"}
)


@attrs.frozen(eq=False)
class Operators:
    """Some operators, each between two layers of its own, in one model.

    Args:
        labels: keys of :data:`MATRICES` or :data:`IMAGES`, of one of the two.
    """

    labels: tuple[str, ...]

    def model(self) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """The model, which returns a tensor for each operator, and its inputs."""
        if self.labels[0] in IMAGES:
            return _Between([IMAGES[label] for label in self.labels], _IMAGE), (_IMAGE,)
        return _Between([MATRICES[label] for label in self.labels], _MATRIX), (_MATRIX,)

    def halves(self) -> tuple[Operators, ...]:
        """The operators in two models; none where there is only one."""
        middle = len(self.labels) // 2
        return (Operators(self.labels[:middle]), Operators(self.labels[middle:])) if middle else ()


_MATRIX = uniform(4, 8)
_IMAGE = uniform(2, 4, 6, 6)


def batches(size: int) -> tuple[Operators, ...]:
    """All operators, in models of at most so many."""
    return tuple(
        Operators(labels[start : start + size])
        for labels in (tuple(MATRICES), tuple(IMAGES))
        for start in range(0, len(labels), size)
    )


class _Between(nn.Module):
    """Each function between two layers: linears for matrices, convolutions for images while they are some."""

    def __init__(self, functions: Sequence[Function], x: torch.Tensor) -> None:
        super().__init__()
        self.functions = functions
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            layers = [nn.Linear(8, 8) if x.dim() == 2 else nn.Conv2d(4, 4, 3, padding=1) for _ in functions]
            self.first = nn.ModuleList(layers)
            self.last = nn.ModuleList(
                map(
                    _layer_for,
                    (function(layer(x)) for function, layer in zip(functions, layers, strict=True)),
                )
            )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run them all."""
        parts = zip(self.first, self.functions, self.last, strict=True)
        return tuple(last(function(first(x))) for first, function, last in parts)


def _layer_for(y: torch.Tensor) -> nn.Module:
    """A layer that takes a tensor; what is no float, or a number, is returned as it is."""
    if not y.is_floating_point() or not y.dim():
        return nn.Identity()
    return nn.Conv2d(y.shape[1], 4, 1) if y.dim() == 4 else nn.Linear(y.shape[-1], 3)


def static_config(table: SupportTable) -> QuantizationConfig | None:
    """A config of static integers that linears and convolutions take; None where the backend has none."""
    for row in table.rows:
        if row.mode == "static" and row.pattern.working == ops.LINEAR:
            return next(iter(configs_of(row)), None)
    return None


def differences(subject: Subject, target: str, operators: Operators) -> Iterator[str]:
    """Differences between the ledger and the lowered program of these operators.

    What the target refuses is no difference: it says so before anything runs. The others are lowered without.
    """
    config = static_config(subject.table)
    assert config is not None
    module, inputs = operators.model()
    quantizer = subject.cls().set_global(config)
    exported = torch.export.export(module.eval(), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        prepared = prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
    quantized = convert_pt2e(calibrate(prepared, [inputs]))
    try:
        program = lower(quantized, inputs, target=target, backends=[subject.name], verify=False)
    except LoweringError:
        for half in operators.halves():
            yield from differences(subject, target, half)
        return
    rows = program.ledger.rows if program.ledger is not None else ()
    yield from filter(None, map(_contradiction, rows))
    with torch.no_grad():
        outputs = zip(module(*inputs), quantized(*inputs), _outputs(program, inputs), strict=True)
        for label, (exact, expected, found) in zip(operators.labels, outputs, strict=True):
            yield from _faults(label, exact, expected, found)


def _contradiction(row: Row) -> str:
    """Contradiction between what runs and a row of the ledger, empty where there is none."""
    code = row.lowered.code if row.lowered is not None else "nothing is known of it"
    if row.is_quantized and code not in AS_CLAIMED:
        return f"{row.node} ({row.op}) is quantized, and the program has it as {code}"
    if not row.is_quantized and code == "delegated_as_integers":
        return f"{row.node} ({row.op}) stays in float ({row.code}), and the program has it as {code}"
    return ""


def _outputs(program: LoweredProgram, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    found: Any = program.run(*inputs)
    return list(found)


def _faults(label: str, exact: torch.Tensor, expected: torch.Tensor, found: torch.Tensor) -> Iterator[str]:
    """Differences between float model, quantized model and program that integers do not explain."""
    if not expected.is_floating_point():
        if not torch.equal(expected, found):
            yield f"{label}: the program returns something else than the quantized model"
        return
    step = float((expected - found).abs().max())
    ratio = sqnr(expected, found)
    if ratio < LEAST_SQNR and step > float(expected.abs().max()) / 100:
        yield f"{label}: {ratio:.1f} dB between the quantized model and the program"
    ratio = sqnr(exact, expected)
    if ratio < LEAST_SQNR_TO_FLOAT and label not in _JUMPS:
        yield f"{label}: {ratio:.1f} dB between the float model and the quantized one"
