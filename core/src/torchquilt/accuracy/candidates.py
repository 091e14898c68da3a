"""Candidates: what can be decided about each unit of a model, and what that costs and does to the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from torchquilt.accuracy.estimates import estimated_noise
from torchquilt.accuracy.units import FLOAT, GIVEN, Choice
from torchquilt.accuracy.variants import Decided, Size, Variants


@attrs.frozen
class Option:
    """One decision about one unit.

    Args:
        choice: the decision.
        noise: what it adds to the outputs, as a ratio of noise to signal.
        macs_float: multiply-adds of the unit that it leaves in float.
        bytes: of the parameters of the unit.
    """

    choice: Choice
    noise: float
    macs_float: int
    bytes: int

    def is_covered_by(self, other: Option) -> bool:
        """Whether another option is at least as good in all, and better in something."""
        mine, theirs = self._figures(), other._figures()
        return theirs != mine and all(b <= a for a, b in zip(mine, theirs, strict=True))

    def _figures(self) -> tuple[float, int, int]:
        return self.noise, self.macs_float, self.bytes


@attrs.frozen
class Space:
    """The options of each unit.

    Args:
        options: unit → its options; the first is what the user's quantizer decides.
        others: size of what belongs to no unit.
    """

    options: Mapping[str, tuple[Option, ...]]
    others: Size

    def option(self, unit: str, choices: Mapping[str, Choice]) -> Option:
        """The option that is chosen for a unit."""
        wanted = choices.get(unit, GIVEN)
        return next((one for one in self.options[unit] if one.choice == wanted), self.options[unit][0])

    def size(self, choices: Mapping[str, Choice]) -> Size:
        """Size of the model, as if each unit were by itself."""
        chosen = [self.option(unit, choices) for unit in self.options]
        return Size(
            self.others.bytes + sum(one.bytes for one in chosen),
            self.others.macs_float + sum(one.macs_float for one in chosen),
        )


def find_candidates(
    variants: Variants, batches: Iterable[object] | None, limit: int, *, fewer_bits: bool
) -> Space:
    """Ask the capabilities of the composition what each unit could be, and estimate what that costs.

    A choice is a candidate for a unit where some operator of it is quantized then, otherwise than by another
    choice. Modules that a rule of the user's leaves in float stay so.

    Args:
        variants: of the model.
        batches: to estimate with; None where only statistics are known.
        limit: of so many batches.
        fewer_bits: also those that only have fewer bits for weights than others.
    """
    searchable = variants.composition.searchable()
    found: dict[str, list[Option]] = {}
    outcomes: dict[str, list[tuple[Any, ...]]] = {}
    for choice in (GIVEN, *variants.composition.choices(fewer_bits=fewer_bits)):
        choices = {} if choice == GIVEN else dict.fromkeys(searchable[choice.leaf or 0], choice)
        if choice != GIVEN and not choices:
            continue
        decided = variants.decided(choices)
        outcome = decided.outcome()
        new = [
            unit
            for unit, what in outcome.items()
            if (choice == GIVEN or unit in choices) and what not in outcomes.get(unit, [])
        ]
        if not new:
            continue
        sizes = _sizes(decided)
        prepared = variants.prepared(decided)
        noise = {} if batches is None else estimated_noise(prepared, decided, batches, limit).of_units
        for unit in new:
            outcomes.setdefault(unit, []).append(outcome[unit])
            found.setdefault(unit, []).append(Option(choice, noise.get(unit, 0.0), *sizes[unit]))
    in_float = _sizes(variants.decided(dict.fromkeys(found, FLOAT)))
    given_units = {unit for unit, options in found.items() if options[0].choice == GIVEN}
    for unit, options in found.items():
        size = in_float.get(unit, (0, 0))
        if unit not in given_units:  # the user's quantizer leaves it in float
            options.insert(0, Option(GIVEN, 0.0, *size))
        else:
            options.append(Option(FLOAT, 0.0, *size))
    useful = {unit: _useful(options) for unit, options in found.items()}
    whole = variants.decided({}).size()
    given = [options[0] for options in useful.values()]
    others = Size(
        whole.bytes - sum(one.bytes for one in given),
        whole.macs_float - sum(one.macs_float for one in given),
    )
    return Space(useful, others)


def _useful(options: list[Option]) -> tuple[Option, ...]:
    """The user's own choice, and those that no other option makes needless."""
    first, *others = options
    return (first, *(one for one in others if not any(one.is_covered_by(other) for other in options)))


def _sizes(decided: Decided) -> dict[str, tuple[int, int]]:
    """Unit → multiply-adds in float, and bytes of parameters."""
    shares = decided.shares()
    found: dict[str, tuple[int, int]] = {}
    for row in decided.ledger:
        unit = decided.units.get(row.forms[-1][0], row.module)
        macs, stored = found.get(unit, (0, 0))
        macs += 0 if row.is_quantized else row.macs
        stored += sum(int(size * shares.get(name, 1)) for name, size in row.parameters)
        found[unit] = (macs, stored)
    return found
