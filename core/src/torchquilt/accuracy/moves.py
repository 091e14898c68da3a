"""Moves of a search: changes of one unit each, those first that help most for what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs

from torchquilt.accuracy.candidates import Option, Space
from torchquilt.accuracy.judging import Limits
from torchquilt.accuracy.units import FLOAT, GIVEN, Choice

#: A move that costs nothing counts as if it cost this share of the model.
_LEAST_COST = 1e-3


@attrs.frozen(eq=False)
class Moves:
    """Beginning of a search, and its moves in their order.

    Args:
        space: the options of each unit.
        limits: no move is made that breaks one of them.
        start: the choices to begin with.
        moves: ``(unit, choice)``.
    """

    space: Space
    limits: Limits
    start: Mapping[str, Choice]
    moves: tuple[tuple[str, Choice], ...]

    @classmethod
    def of(cls, space: Space, limits: Limits) -> Moves:
        """Begin within the limits, and order the moves that lessen the noise."""
        start = _within(limits, space)
        now = dict(start)
        free = _free_moves(space, now)
        now.update(free)
        return cls(space, limits, start, (*free, *_dear_moves(space, now)))

    def __len__(self) -> int:
        return len(self.moves)

    def after(self, number: int) -> dict[str, Choice]:
        """The choices after so many moves; one that would break a limit is not made."""
        chosen = dict(self.start)
        for unit, choice in self.moves[:number]:
            before = chosen.get(unit, GIVEN)
            chosen[unit] = choice
            if not self.limits.holds(self.space.size(chosen)):
                chosen[unit] = before
        return chosen

    def without(self, unit: str, chosen: Mapping[str, Choice]) -> dict[str, Choice]:
        """The choices where one unit is as it was in the beginning."""
        return {**chosen, unit: self.start.get(unit, GIVEN)}

    def by_saving(self, chosen: Mapping[str, Choice]) -> list[str]:
        """The units that were changed, those first that save most when they are taken back."""
        changed = [unit for unit, choice in chosen.items() if choice != self.start.get(unit, GIVEN)]

        def cost(unit: str) -> tuple[int, int, str]:
            size = self.space.size(self.without(unit, chosen))
            return size.macs_float, size.bytes, unit

        return sorted(changed, key=cost)

    def is_cheaper(self, one: Mapping[str, Choice], other: Mapping[str, Choice]) -> bool:
        """Whether some choices cost no more than others."""
        mine, theirs = self.space.size(one), self.space.size(other)
        return (mine.macs_float, mine.bytes) <= (theirs.macs_float, theirs.bytes)


def _within(limits: Limits, space: Space) -> dict[str, Choice]:
    """Make units cheaper, those first that lose least by it, until the limits hold or none is cheaper."""
    chosen: dict[str, Choice] = {}
    while not limits.holds(size := space.size(chosen)):
        is_large = limits.max_bytes is not None and size.bytes > limits.max_bytes
        moves = []
        for unit, options in space.options.items():
            now = space.option(unit, chosen)
            for number, option in enumerate(options):
                saved = now.bytes - option.bytes if is_large else now.macs_float - option.macs_float
                if saved > 0:
                    moves.append((max(option.noise - now.noise, 0.0) / saved, -saved, unit, number))
        if not moves:
            break
        *_, unit, number = min(moves)
        chosen[unit] = space.options[unit][number].choice
    return chosen


def _free_moves(space: Space, now: Mapping[str, Choice]) -> list[tuple[str, Choice]]:
    """For each unit the most accurate integers that cost no more, those first that gain most."""
    found: list[tuple[float, str, Choice]] = []
    for unit, options in space.options.items():
        here = space.option(unit, now)
        better = [one for one in options if one.noise < here.noise and _is_no_dearer(one, here)]
        if better:
            best = min(better, key=lambda one: one.noise)
            found.append((here.noise - best.noise, unit, best.choice))
    return [(unit, choice) for _, unit, choice in sorted(found, key=lambda move: (-move[0], move[1]))]


def _is_no_dearer(one: Option, other: Option) -> bool:
    return one.macs_float <= other.macs_float and one.bytes <= other.bytes and one.choice != FLOAT


def _dear_moves(space: Space, now: Mapping[str, Choice]) -> list[tuple[str, Choice]]:
    """Moves that cost multiply-adds in float or bytes, those first that gain most for it."""
    whole = space.size(now)
    least = _LEAST_COST * (sum(one[0].bytes for one in space.options.values()) + whole.macs_float + 1)
    found: list[tuple[float, str, int]] = []
    for unit, options in space.options.items():
        here = space.option(unit, now)
        for number, one in enumerate(options):
            if one.noise < here.noise:
                cost = max(one.macs_float - here.macs_float, 0) + max(one.bytes - here.bytes, 0)
                found.append(((here.noise - one.noise) / (cost + least), unit, number))
    found.sort(key=lambda move: (-move[0], move[1], move[2]))
    moves: list[tuple[str, Choice]] = []
    reached: dict[str, float] = {}
    for _, unit, number in found:
        one = space.options[unit][number]
        if one.noise < reached.get(unit, math.inf):  # after a better one it would be a step back
            reached[unit] = one.noise
            moves.append((unit, one.choice))
    return moves
