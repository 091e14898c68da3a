"""Pairs of rows as graphs: each behind every other, and every two that read one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torchquilt.support.operators import Operator
from torchquilt.support.table import Sharing, SupportTable
from torchquilt.testing.graphs import Graph, Plan, Step, patterns_of
from torchquilt.testing.operators import Sizes, activations_of

#: What makes one tensor fit the other row where it does not by itself.
_BETWEEN = ("", "as_rows", "as_signal", "as_image")


def kinds_of(table: SupportTable, mode: str = "") -> tuple[tuple[str, ...], ...]:
    """The patterns of a table's rows, those together that have the same operator first or doing the work.

    Those of one kind differ in what is computed in the same kernel behind it. They take turns in the pairs.

    Args:
        table: the table.
        mode: of the rows (``static``); all by default.
    """
    names = {operators: name for name, operators in patterns_of(table).items()}
    kinds: dict[tuple[Operator, ...], list[str]] = {}
    for row in table.rows:
        operators = row.pattern.operators
        name = names[operators]
        members = kinds.setdefault(operators[: row.pattern.anchor_index + 1], [])
        if name not in members and mode in ("", row.mode):
            members.append(name)
    return tuple(tuple(members) for members in kinds.values() if members)


def pairs_of(
    table: SupportTable,
    ask: str,
    first: Sequence[Sequence[str]],
    second: Sequence[Sequence[str]],
    dtype: str = "float32",
) -> Iterator[Plan]:
    """A plan for each two kinds: the second behind the first, and both on one tensor.

    What does not fit in any form is left out.

    Args:
        table: the table.
        ask: the name of what everything is asked for.
        first: kinds, as :func:`kinds_of` gives them.
        second: likewise.
        dtype: of the inputs and layers.
    """
    patterns = patterns_of(table)
    followers = {row.pattern.operators for row in table.rows if row.sharing is Sharing.FOLLOWS_INPUT}
    turn, met = 0, set()
    for one in first:
        for other in second:
            turn += 1
            names = one[turn % len(one)], other[(turn // len(one)) % len(other)]
            # An operator that follows its input needs a quantized one.
            front = any(patterns[name] in followers for name in names)
            yield from _fitting(names, 0, ask, patterns, front, dtype)
            if frozenset((one, other)) not in met:
                met.add(frozenset((one, other)))
                yield from _fitting(names, 1, ask, patterns, front, dtype)


def _fitting(
    names: tuple[str, str],
    back: int,
    ask: str,
    patterns: dict[str, tuple[Operator, ...]],
    front: bool,
    dtype: str,
) -> Iterator[Plan]:
    """The first form in which a pair fits, if there is one.

    Args:
        names: of the two.
        back: 0 for one behind the other, 1 for both on one tensor.
        ask: what is asked for.
        patterns: the patterns of the table.
        front: put a layer in front of both.
        dtype: of the inputs and layers.
    """
    first, second = names
    activations = activations_of(patterns[first][0], Sizes(lambda _, high: high))
    # One sample fits every row; several do not fit those that quantize it when they run.
    shapes = sorted(
        {tuple(one.shape) for one in activations if one.is_floating_point() and one.dim()}, key=_by_samples
    )
    for between in _BETWEEN:
        for shape in shapes:
            steps = [Step("square_linear"), Step(first)] if front else [Step(first)]
            if between:
                steps.append(Step(between, back=(back, 0, 0)))
            steps.append(Step(second, back=(0 if between else back, 0, 0)))
            plan = Plan(shape, tuple(steps), (ask,), dtype=dtype)
            if Graph(plan, patterns).steps == plan.steps:
                yield plan
                return


def _by_samples(shape: tuple[int, ...]) -> tuple[bool, int]:
    return shape[0] != 1, -len(shape)
