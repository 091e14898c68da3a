"""Models for a row: its operators one after the other, in the ways in which each can be called."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from torch import nn

from torchquilt.support.operators import Operator
from torchquilt.support.pattern import OperatorPattern
from torchquilt.testing.operators import Call, Sizes, activations_of, calls_of
from torchquilt.testing.trees import is_chain, tree_calls

# What a call may raise that does not fit the activation it is made for.
_DOES_NOT_FIT = (RuntimeError, ValueError, IndexError, TypeError)

# No operator has more ways to be called than this.
_MOST_WAYS = 8

_OTHER_DTYPES = (torch.float16, torch.bfloat16, torch.float64)


@attrs.frozen(eq=False)
class Example:
    """A model, and what is known of it without looking at its graph.

    Args:
        label: how it was made, for messages.
        module: the model.
        inputs: what it is exported and run with.
        has_constant_weight: weights and biases are constants of the model; None where that is not known.
        is_dynamic: its shapes are exported as dynamic, as far as the model allows it.
    """

    label: str
    module: nn.Module
    inputs: tuple[Any, ...]
    has_constant_weight: bool | None = None
    is_dynamic: bool = False

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The types of inputs and parameters."""
        tensors = (*self.inputs, *self.module.parameters(), *self.module.buffers())
        return {tensor.dtype for tensor in tensors if isinstance(tensor, torch.Tensor)}

    @property
    def rank(self) -> int:
        """Number of dimensions of the first input."""
        return int(self.inputs[0].dim())

    def fresh_inputs(self) -> tuple[Any, ...]:
        """The inputs again, for models that write into them."""
        return tuple(v.clone() if isinstance(v, torch.Tensor) else v for v in self.inputs)


class Step(nn.Module):
    """A function as a module; a module stays one."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.function = call.function
        self.extras = len(call.extras)

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        """Call it."""
        return self.function(*arguments)


class Chain(nn.Module):
    """Calls one after the other; each takes its extras from the inputs of the model.

    Args:
        calls: the calls.
        in_front: put an operator in front, that another quantizer can quantize.
    """

    def __init__(self, calls: tuple[Call, ...], in_front: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList(map(Step, calls))
        self.in_front = in_front

    def forward(self, x: torch.Tensor, *extras: torch.Tensor) -> torch.Tensor:
        """Run the calls."""
        if self.in_front:
            x = torch.neg(x)
        for step in self.steps:
            assert isinstance(step, Step)
            x = step(x, *extras[: step.extras])
            extras = extras[step.extras :]
        return x


def examples_of(pattern: OperatorPattern, sizes: Sizes, in_front: bool = False) -> Iterator[Example]:
    """Models of a pattern: every activation, every way to call each operator, other dtypes, dynamic shapes.

    Args:
        pattern: the operators.
        sizes: where sizes come from.
        in_front: as for :class:`Chain`.
    """
    activations = activations_of(pattern.operators[0], sizes) or activations_of(pattern.working, sizes)
    fitting = []
    for activation in activations:
        plain = _example(pattern, activation, sizes, in_front)
        if plain is not None:
            fitting.append(activation)
            yield plain
    for activation in fitting[:1]:
        for position in range(len(pattern.operators)):
            for choice in range(1, _MOST_WAYS):
                found = _example(pattern, activation, sizes, in_front, {position: choice})
                if found is not None:
                    yield found
        for dtype in _OTHER_DTYPES:
            example = _example(pattern, activation, sizes, in_front)
            if example is not None:
                yield _in_dtype(example, dtype)
        # Longer chains begin with an operator that computes; ways to call it hardly depend on its shape.
        for choice in (0, 1, -1) if len(pattern.operators) == 1 else (0,):
            example = _example(pattern, activation, sizes, in_front, {0: choice})
            if example is not None:
                yield attrs.evolve(example, label=f"{example.label}, dynamic shapes", is_dynamic=True)


def operator_examples(*operators: Operator) -> Iterator[Example]:
    """Small models of one operator, or of a chain of them, called in the ways that the kit knows.

    The plain call comes first. Tensors are float32, or tokens where an operator looks something up; shapes
    are fixed. There is none where the kit does not know an operator, or they do not fit behind each other.

    Args:
        operators: in order of data flow.
    """
    found = [
        example
        for example in examples_of(OperatorPattern.of(*operators), Sizes())
        if not example.is_dynamic and not example.dtypes & {*_OTHER_DTYPES}
    ]
    floats = [example for example in found if example.inputs[0].is_floating_point()]
    yield from floats or found


class _SideBySide(nn.Module):
    """Models that have nothing to do with each other, as one."""

    def __init__(self, examples: Sequence[Example]) -> None:
        super().__init__()
        self.models = nn.ModuleList(example.module for example in examples)
        self.counts = [len(example.inputs) for example in examples]

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Run each with its inputs."""
        ends = [*itertools.accumulate(self.counts)]
        pairs = zip(self.models, self.counts, ends, strict=True)
        return tuple(model(*inputs[end - count : end]) for model, count, end in pairs)


def side_by_side(examples: Sequence[Example]) -> Example:
    """One model of several examples, whose inputs are theirs one after the other.

    Args:
        examples: at least one; their shapes are fixed.
    """
    inputs = tuple(value for example in examples for value in example.fresh_inputs())
    return Example(f"{len(examples)} examples", _SideBySide(examples).eval(), inputs)


def _example(
    pattern: OperatorPattern,
    activation: torch.Tensor,
    sizes: Sizes,
    in_front: bool,
    choices: dict[int, int] | None = None,
) -> Example | None:
    """The pattern with one of the calls of each operator, the plain one where no other is chosen."""
    calls: list[Call] = []
    x = activation
    steps = [partial(calls_of, operator) for operator in pattern.operators]
    if not is_chain(pattern):
        steps = [partial(tree_calls, pattern)]
    for position, ways in enumerate(steps):
        choice = (choices or {}).get(position, 0)
        try:
            call = ways(x, sizes)[choice]
            with torch.no_grad():
                x = call.function(x, *call.extras)
        except _DOES_NOT_FIT:
            return None
        calls.append(call)
    labels = [call.label for call in calls if call.label]
    shape = "x".join(map(str, activation.shape))
    return Example(
        label=f"{pattern.name} of {str(activation.dtype).removeprefix('torch.')} {shape}"
        + (f" ({', '.join(labels)})" if labels else ""),
        module=Chain(tuple(calls), in_front).eval(),
        inputs=(activation, *(extra for call in calls for extra in call.extras)),
        has_constant_weight=all(call.has_constant_weight for call in calls),
    )


def _in_dtype(example: Example, dtype: torch.dtype) -> Example:
    inputs = tuple(value.to(dtype) if value.is_floating_point() else value for value in example.inputs)
    label = f"{example.label} in {str(dtype).removeprefix('torch.')}"
    return Example(label, example.module.to(dtype), inputs, example.has_constant_weight)
