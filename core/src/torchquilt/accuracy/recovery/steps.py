"""The record of a recovery pass: what it was applied to, what it left alone and why, and what it gained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
from torch.fx import GraphModule

from torchquilt._internal.text_tables import aligned, counted
from torchquilt.errors import ModelError

_STEPS_KEY = "torchquilt_recovery"


@attrs.frozen
class Gain:
    """One figure of a node before and after a recovery pass.

    Args:
        node: the node, with the path of its subgraph before it.
        measure: the figure and its unit, ``"output error, relative (MSE)"``. Smaller is better.
        before: without the pass.
        after: with it.
    """

    node: str
    measure: str
    before: float
    after: float


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(names)


def _reasons(reasons: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(reasons)


def _gains(gains: Iterable[Gain]) -> tuple[Gain, ...]:
    return tuple(gains)


@attrs.frozen
class RecoveryStep:
    """One recovery pass over a model.

    Args:
        name: of the pass, as the function is called (``"equalize"``).
        applied: the nodes that it changed, or whose weights it did, in the order of the graph.
        left: each node that it looked at and left as it was, with the reason.
        gain: what it gained, node by node, as far as that was measured.
    """

    name: str
    applied: tuple[str, ...] = attrs.field(converter=_names)
    left: tuple[tuple[str, str], ...] = attrs.field(default=(), converter=_reasons)
    gain: tuple[Gain, ...] = attrs.field(default=(), converter=_gains)

    def __str__(self) -> str:
        rows = [("node", "", "gain or reason"), *self._rows()]
        head = f"{self.name}: applied to {counted(len(self.applied), 'node')}, {len(self.left)} left alone"
        return f"{head}\n{aligned(rows)}" if len(rows) > 1 else head

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        gains = {gain.node: gain for gain in self.gain}
        for node in self.applied:
            gain = gains.get(node)
            told = "" if gain is None else f"{gain.measure}: {gain.before:.3g} → {gain.after:.3g}"
            yield node, "applied", told
        for node, reason in self.left:
            yield node, "left", reason


def steps_of(model: GraphModule) -> tuple[RecoveryStep, ...]:
    """The recovery passes that were run over a model, in order; none for any other model.

    A model that was prepared or converted from a recovered one has them, too.

    Raises:
        ModelError: it is no graph module.
    """
    if not isinstance(model, GraphModule):
        raise ModelError(
            "Only a graph module has recovery steps.",
            expected="what a recovery pass, prepare_pt2e or convert_pt2e returned",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
        )
    return tuple(model.meta.get(_STEPS_KEY, ()))


def note_step(model: GraphModule, step: RecoveryStep) -> None:
    """Add the record of a pass to those of a model; changes ``model``."""
    model.meta[_STEPS_KEY] = (*model.meta.get(_STEPS_KEY, ()), step)
