"""Small graphs made of all rows of a table together: each is a value that is drawn, shrunk, printed and kept.

A :class:`Plan` is a list of steps. A step names what is called and how far back the values are that it
reads, so that any step can be taken away and the rest is a plan again. A step that does not fit the values
that there are is left out. That makes plans that shrink well, and that can be written down as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from torchquilt.support.operators import Operator
from torchquilt.support.parts import Part
from torchquilt.support.pattern import OperatorPattern
from torchquilt.support.table import SupportTable
from torchquilt.testing.operators import Call, Sizes, activations_of, calls_of

#: What a call may raise that does not fit the values that it is given.
DOES_NOT_FIT = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)

_MOST_ELEMENTS = 4096
_SPREAD = 0.25


@attrs.frozen
class Step:
    """A call of a graph.

    Args:
        name: of a pattern of the table, or of one of :data:`OTHERS`.
        way: which of the ways to call it; counted around.
        back: how many values back its inputs are, the first one first; counted around. With -1 the first one
            is a new input, as the operator likes it best.
        ask: how it is asked for: 0 as everything is, else another choice of the plan's ``asks``.
    """

    name: str
    way: int = 0
    back: tuple[int, ...] = (0, 0, 0)
    ask: int = 0


@attrs.frozen
class Plan:
    """A graph, and how it is quantized.

    Args:
        shape: of the first input.
        steps: the calls.
        asks: names of presets. The first is asked for everywhere, the others by rules for single steps;
            an empty one leaves a step in float.
        channels_last: images come in this memory format.
        seed: of weights and inputs.
        dtype: of the inputs, by name. A layer has the dtype of what it reads.
    """

    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    asks: tuple[str, ...] = ("",)
    channels_last: bool = False
    seed: int = 0
    dtype: str = "float32"


class Layer(nn.Module):
    """One call of a graph, as a module, so that rules can be about it and two steps can share it."""

    def __init__(self, calls: tuple[Call, ...]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [call.function if isinstance(call.function, nn.Module) else _Function(call.function)
             for call in calls]
        )  # fmt: skip
        self.counts = [len(call.extras) for call in calls]
        self.extras = [extra for call in calls for extra in call.extras]

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> Any:
        """Run the calls, one behind the other."""
        for part, count in zip(self.parts, self.counts, strict=True):
            x, extras = part(x, *extras[:count]), extras[count:]
        return x


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: torch.Tensor) -> Any:
        """Call it."""
        return self.function(*arguments)


@attrs.define(eq=False)
class _Placed:
    """A step that fits: which layer is called, and with which values."""

    step: Step
    layer: int
    reads: tuple[int, ...]


class Graph(nn.Module):
    """The model of a plan.

    It returns the last value, one from the middle, and those that no step reads.

    Args:
        plan: the plan.
        patterns: name → the operators of a pattern.
    """

    def __init__(self, plan: Plan, patterns: Mapping[str, tuple[Operator, ...]]) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleList()
        self._placed: list[_Placed] = []
        generator = torch.Generator().manual_seed(plan.seed)
        first = _cast(torch.randn(plan.shape, generator=generator) + _SPREAD, self._dtype)
        if plan.channels_last and first.dim() == 4:
            first = first.contiguous(memory_format=torch.channels_last)
        self.inputs: list[torch.Tensor] = [first]
        values: list[torch.Tensor] = [first]
        self._origins: list[tuple[str, int]] = [("input", 0)]  # of each value: an input, or a step's output
        for step in plan.steps:
            self._add(step, values, patterns, generator)
        self.eval()

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.plan.dtype)
        return dtype

    def _add(
        self,
        step: Step,
        values: list[torch.Tensor],
        patterns: Mapping[str, tuple[Operator, ...]],
        generator: torch.Generator,
    ) -> None:
        """Add a step if it fits, and what it returns to the values."""
        back, *more = step.back
        state = generator.get_state()
        try:
            new = _cast(_new_input(step, patterns), self._dtype) if back < 0 else None
            x = values[-1 - back % len(values)] if new is None else new
            layer, number = self._layer(step, x, patterns, generator)
            extras = [_like(extra, values, more, n) for n, extra in enumerate(layer.extras)]
            given = [values[extra] if isinstance(extra, int) else extra for extra in extras]
            with torch.no_grad():
                found = layer.eval()(x, *given)
        except DOES_NOT_FIT:
            generator.set_state(state)
            return
        outputs = [*found] if isinstance(found, (tuple, list)) else [found]
        if not all(map(_can_be_used, outputs)):
            return
        reads = [len(values) - 1 - back % len(values)]
        if number == len(self.layers):
            self.layers.append(layer)
        if new is not None:
            reads = [self._add_input(new, values)]
        for extra in extras:
            reads.append(extra if isinstance(extra, int) else self._add_input(extra, values))
        self._placed.append(_Placed(step, number, tuple(reads)))
        values += outputs
        self._origins += [("step", len(self._placed) - 1)] * len(outputs)

    def _add_input(self, tensor: torch.Tensor, values: list[torch.Tensor]) -> int:
        """One more input; its number among the values."""
        self.inputs.append(tensor)
        values.append(tensor)
        self._origins.append(("input", len(self.inputs) - 1))
        return len(values) - 1

    def _layer(
        self,
        step: Step,
        x: torch.Tensor,
        patterns: Mapping[str, tuple[Operator, ...]],
        generator: torch.Generator,
    ) -> tuple[Layer, int]:
        """A layer for a step, or an earlier one, with its number."""
        if step.name == AGAIN:
            if not self.layers:
                raise ValueError("there is no layer yet")
            number = len(self.layers) - 1 - step.way % len(self.layers)
            layer = self.layers[number]
            assert isinstance(layer, Layer)
            return layer, number
        plain = _cast(x, torch.float32)  # which layers are made for
        if step.name in OTHERS:
            calls = [Call("", OTHERS[step.name](plain))]
        else:
            calls = list(_chain(patterns[step.name], plain, step.way))
        layer = Layer(tuple(calls))
        _fill(layer, generator)
        if x.is_floating_point():
            layer.to(x.dtype)
            layer.extras = [_cast(extra, x.dtype) for extra in layer.extras]
        return layer, len(self.layers)

    def asked(self) -> Iterator[tuple[str, str]]:
        """Module → preset, of the steps that a rule of their own is about."""
        for placed in self._placed:
            ask = self.plan.asks[placed.step.ask % len(self.plan.asks)]
            if ask != self.plan.asks[0]:
                yield f"layers.{placed.layer}", ask

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the steps."""
        values: list[torch.Tensor] = []
        produced: dict[int, list[torch.Tensor]] = {}
        for kind, number in self._origins:
            if kind == "input":
                values.append(inputs[number])
                continue
            if number not in produced:
                placed = self._placed[number]
                found = self.layers[placed.layer](*(values[i] for i in placed.reads))
                produced[number] = [*found] if isinstance(found, (tuple, list)) else [found]
            values.append(produced[number].pop(0))
        return self._outputs(values)

    def _outputs(self, values: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        read = {index for placed in self._placed for index in placed.reads}
        made = [index for index, (kind, _) in enumerate(self._origins) if kind == "step"]
        chosen = {index for index in made if index not in read}
        if made:
            chosen |= {made[len(made) // 2]}
        return tuple(values[index] for index in sorted(chosen))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that fit."""
        return tuple(placed.step for placed in self._placed)


class Graphs(nn.Module):
    """Several graphs as one model, each with its own inputs and outputs.

    Args:
        graphs: the graphs.
    """

    def __init__(self, graphs: Sequence[Graph]) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(graphs)
        self.counts = [len(graph.inputs) for graph in graphs]

    def forward(self, *inputs: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Run all of them."""
        outputs = []
        for graph, count in zip(self.graphs, self.counts, strict=True):
            outputs.append(graph(*inputs[:count]))
            inputs = inputs[count:]
        return tuple(outputs)


def patterns_of(table: SupportTable) -> dict[str, tuple[Operator, ...]]:
    """Name → operators, for each chain of a table, once; of a row with an optional part both chains."""
    found: dict[tuple[Operator, ...], str] = {}
    for row in table.rows:
        chains = tuple(_chains_of(row.pattern))
        for operators in chains:
            joined = "_".join(operator.name for operator in operators)
            name = row.pattern.name if len(chains) == 1 else joined
            found.setdefault(operators, joined if name in found.values() else name)
    return {name: operators for operators, name in found.items()}


def _chains_of(pattern: OperatorPattern) -> Iterator[tuple[Operator, ...]]:
    """The operators of a pattern with and without its optional parts; of alternatives the first."""
    for root in pattern.root.variants():
        if isinstance(root, Part):
            yield tuple(each.alternatives[0] for each in root.all_parts())


def _chain(operators: tuple[Operator, ...], x: torch.Tensor, way: int) -> Iterator[Call]:
    """Calls of operators one behind the other; the way is that of the first one."""
    for position, operator in enumerate(operators):
        calls = calls_of(operator, x, Sizes())
        if not calls:
            raise ValueError(f"nothing is known of {operator.name}")
        call = calls[way % len(calls)] if position == 0 else calls[0]
        with torch.no_grad():
            x = call.function(x, *call.extras)
        yield call


def _new_input(step: Step, patterns: Mapping[str, tuple[Operator, ...]]) -> torch.Tensor:
    if step.name not in patterns:
        raise ValueError(f"nothing is known of what {step.name} likes")
    found = activations_of(patterns[step.name][0], Sizes())
    if not found:
        raise ValueError(f"nothing is known of what {step.name} likes")
    return found[step.way % len(found)]


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of floats in another precision; another stays as it is."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _like(extra: torch.Tensor, values: list[torch.Tensor], more: list[int], n: int) -> int | torch.Tensor:
    """An earlier value instead of an extra input, if there is one of its shape."""
    fitting = [
        index
        for index, value in enumerate(values)
        if value.shape == extra.shape and value.dtype == extra.dtype
    ]
    return fitting[-1 - more[n % len(more)] % len(fitting)] if fitting and more else extra


def _can_be_used(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and 0 < value.numel() <= _MOST_ELEMENTS
        and bool(torch.isfinite(value).all())
    )


def _fill(layer: nn.Module, generator: torch.Generator) -> None:
    """Draw weights that keep the size of what goes through them."""
    for parameter in layer.parameters():
        fan_in = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 16
        parameter.data = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5


# --- What stands between the rows of a table ----------------------------------------------------------------

#: Calls an earlier layer once more.
AGAIN = "again"


class _SqueezeExcite(nn.Module):
    """A gate for each channel, found from the whole image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale the channels."""
        pooled = F.adaptive_avg_pool2d(x, 1)
        scaled: torch.Tensor = x * torch.sigmoid(self.up(torch.relu(self.down(pooled))))
        return scaled


class _Attention(nn.Module):
    """Self-attention with one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend."""
        scores = self.query(x) @ self.key(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        attended: torch.Tensor = torch.softmax(scores, -1) @ self.value(x)
        return attended


def _image(make: Callable[[int], nn.Module]) -> Callable[[torch.Tensor], nn.Module]:
    def build(x: torch.Tensor) -> nn.Module:
        if x.dim() != 4:
            raise ValueError("no image")
        return make(x.shape[1])

    return build


def _function(function: Callable[..., Any]) -> Callable[[torch.Tensor], nn.Module]:
    return lambda _: _Function(function)


#: Name → what makes a module for a value: operators in float, and blocks that models are made of.
OTHERS: dict[str, Callable[[torch.Tensor], nn.Module]] = {
    "tanh": _function(torch.tanh),
    "sigmoid": _function(torch.sigmoid),
    "softmax": _function(lambda x: torch.softmax(x, -1)),
    "gelu": _function(F.gelu),
    "hardswish": _function(F.hardswish),
    "leaky_relu": _function(lambda x: F.leaky_relu(x, 0.1)),
    "neg": _function(torch.neg),
    "abs": _function(torch.abs),
    "square": _function(lambda x: x * x),
    "masked": _function(lambda x: x * (x > 0)),
    "cast": _function(lambda x: x.float()),
    "half": _function(lambda x: x.half().float()),
    "double": _function(lambda x: x.double().float()),
    "type": _function(lambda x: x.type(torch.float32)),
    "chunk": _function(lambda x: x.chunk(2, 1)),
    "split": _function(lambda x: x.split([1, x.shape[-1] - 1], -1)),
    "unbind": _function(lambda x: x.unbind(1)[0]),
    "flip": _function(lambda x: x.flip(-1)),
    "expand": _function(lambda x: x.unsqueeze(1).expand(-1, 2, *x.shape[1:])),
    "squeeze_all": _function(lambda x: x.squeeze()),
    "sum": _function(lambda x: x.sum(-1)),
    "max": _function(lambda x: x.amax(-1, keepdim=True)),
    # Not a power of two: steps that divide each other make sums that lie between two of them.
    "hstack": _function(lambda x: torch.hstack([x, x * 1.7])),
    "clamp_min": _function(lambda x: x.clamp_min(0.1)),
    "upsample": _image(lambda _: nn.Upsample(scale_factor=2)),
    "avg_pool": _image(lambda _: nn.AvgPool2d(2, 1)),
    "prelu": _image(nn.PReLU),
    "conv_bn": _image(lambda c: nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4))),
    "conv_bn_relu": _image(
        lambda c: nn.Sequential(nn.Conv2d(c, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    ),
    "conv_same": _image(lambda c: nn.Conv2d(c, c, 3, padding=1)),
    "depthwise": _image(lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c)),
    "pointwise": _image(lambda c: nn.Conv2d(c, c, 1)),
    "squeeze_excite": _image(_SqueezeExcite),
    "as_rows": _function(lambda x: x.reshape(-1, x.shape[-1])),
    "as_signal": _function(lambda x: x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(0)),
    "as_image": _function(lambda x: x.reshape([1] * (4 - x.dim()) + [*x.shape])),
    "square_linear": lambda x: nn.Linear(x.shape[-1], x.shape[-1]),
    "layer_norm": lambda x: nn.LayerNorm(x.shape[-1], elementwise_affine=False),
    "attention": lambda x: _Attention(x.shape[-1]),
}
