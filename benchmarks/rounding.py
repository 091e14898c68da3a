"""The first kernel of a program that rounds otherwise than its quantized model, and what that does.

A quantized model is cut behind each of its quantizes in turn, and lowered. Up to the first cut at which the
program returns other integers all kernels agree with the model, so that one has the same inputs. Then the
model itself, every other operator as it was, goes on from the integers of the program: how far that takes
its output tells how much of the whole difference is such rounding, and grows from layer to layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from torch import fx
from torch.utils import _pytree as pytree

from measuring import signal_to_noise

MOST_CUTS = 12
_FEW_WORDS = 3


@attrs.frozen
class RoundedOtherwise:
    """A kernel that returns other integers from the same inputs.

    Args:
        operators: of the model, that it computes.
        share: of its integers that are others.
        steps: how many steps of the scale they are off, at most.
        output: SQNR of the model's output, in dB, if this kernel alone rounds so.
    """

    operators: tuple[str, ...]
    share: float
    steps: float
    output: float

    def __str__(self) -> str:
        plural = "" if self.steps < 1.5 else "s"
        return (
            f"{', '.join(self.operators)}: {100 * self.share:.2g} % of its integers are others, by up to "
            f"{self.steps:.0f} step{plural}, from the same inputs; the model's own output is "
            f"{self.output:.1f} dB from itself with these"
        )


def first_rounded_otherwise(
    quantized: fx.GraphModule, example: tuple[Any, ...], target: str
) -> RoundedOtherwise | None:
    """The first kernel that rounds otherwise; None where all of the first cuts agree in every integer.

    Args:
        quantized: the model with quantizes and dequantizes.
        example: its inputs.
        target: name of the lowering target.
    """
    import torchquilt as tq

    for node in list(_dequantizes(quantized))[:MOST_CUTS]:
        model = _cut_behind(quantized, node.name)
        (expected,) = _leaves(model(*example))
        (found,) = _leaves(tq.lower(model, example, target=target, verify=False).run(*example))
        steps = (expected - found).abs() / node.args[1]
        if bool((steps > 0.5).any()):
            output = signal_to_noise(
                _leaves(quantized(*example)), _leaves(_Replacing(quantized, node.name, found).run(*example))
            )
            share = float((steps > 0.5).double().mean())
            return RoundedOtherwise(_computed(node), share, float(steps.max()), output)
    return None


def _dequantizes(model: fx.GraphModule) -> Iterator[fx.Node]:
    """The first dequantize of each activation of one scale, in order."""
    seen = set()
    for node in model.graph.nodes:
        is_one = "dequantize_per_tensor" in str(node.target) and node.args[0].op == "call_function"
        if is_one and node.args[0] not in seen:
            seen.add(node.args[0])
            yield node


def _cut_behind(model: fx.GraphModule, name: str) -> fx.GraphModule:
    """The part of a model that computes one of its values."""
    cut = copy.deepcopy(model)
    node = next(one for one in cut.graph.nodes if one.name == name)
    cut.graph.output_node().args = ((node,),)
    cut.graph.set_codegen(fx.graph.CodeGen())
    cut.graph.eliminate_dead_code()
    cut.recompile()
    return cut


def _computed(dequantize: fx.Node) -> tuple[str, ...]:
    """The operators between two quantizes, the last few of them."""
    names: list[str] = []
    waiting = list(dequantize.args[0].all_input_nodes[:1])
    while waiting and len(names) < _FEW_WORDS:
        node = waiting.pop()
        if node.op != "call_function" or "quantize_per" in str(node.target):
            break
        names.append(node.name)
        waiting += node.all_input_nodes[:1]
    return tuple(reversed(names)) or ("quantizing the input",)


class _Replacing(fx.Interpreter):
    """A run in which one node returns another value."""

    def __init__(self, model: fx.GraphModule, name: str, value: torch.Tensor) -> None:
        super().__init__(model)
        self._name, self._value = name, value

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        return self._value if n.name == self._name else super().run_node(n)


def _leaves(outputs: Any) -> list[Any]:
    return list(pytree.tree_leaves(outputs))
