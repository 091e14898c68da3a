"""Frozen values as plain data and back, the way every JSON of ours is written and read."""

from __future__ import annotations

import json
from typing import Any, Literal

import attrs
import pytest

import torchquilt as tq
from torchquilt._internal.json_values import NOT_SUCH_VALUES, from_document, from_plain, parsed, to_plain


@attrs.frozen
class Leaf:
    """A value with each kind of field that ours have."""

    name: str
    size: int
    ratio: float
    kind: Literal["a", "b"] | None = None
    number: float | str | None = None


@attrs.frozen
class Branch:
    """A value with values in it."""

    leaves: tuple[Leaf, ...]
    pairs: tuple[tuple[str, int], ...] = ()
    best: Leaf | None = None
    by_name: dict[str, tuple[float, float]] = attrs.field(factory=dict)


LEAF = Leaf("x", 3, 0.5, "a", "name")
BRANCH = Branch((LEAF, attrs.evolve(LEAF, number=None)), (("y", 1),), LEAF, {"z": (0.0, 1.0)})


def test_a_value_is_lists_dicts_texts_and_numbers() -> None:
    """Tuples are lists at any depth, and fields stand in their order."""
    plain = to_plain(BRANCH)
    assert json.loads(json.dumps(plain)) == plain
    assert [*plain] == ["leaves", "pairs", "best", "by_name"]
    assert plain["pairs"] == [["y", 1]]


def test_what_is_written_is_read() -> None:
    """As an equal value, which hashes where it did before."""
    assert from_plain(Branch, json.loads(json.dumps(to_plain(BRANCH)))) == BRANCH


def test_a_missing_field_has_its_default() -> None:
    """So that what an older version wrote is read."""
    assert from_plain(Branch, {"leaves": []}) == Branch(())


def test_a_whole_number_stands_for_a_real_one() -> None:
    """It stays as it is, so that it is written as it was read."""
    ratio = from_plain(Leaf, {"name": "x", "size": 3, "ratio": 1}).ratio
    assert repr(ratio) == "1"


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"size": "3"},
        {"size": 3.5},
        {"ratio": "0.5"},
        {"ratio": None},
        {"kind": "c"},
        {"number": []},
        {"colour": "green"},
    ],
    ids=str,
)
def test_nothing_is_converted_and_nothing_is_dropped(change: dict[str, Any]) -> None:
    """Another type, another name or another choice is refused at any depth."""
    plain = to_plain(BRANCH)
    plain["leaves"][1].update(change)
    with pytest.raises(NOT_SUCH_VALUES):
        from_plain(Branch, plain)


@pytest.mark.parametrize("text", ["", "nonsense", "{" * 100_000])
def test_text_that_is_no_json_is_an_error_of_ours(text: str) -> None:
    """It says what it should be JSON of."""
    with pytest.raises(tq.ModelError, match="This is not JSON of a tree"):
        parsed(text, "a tree", tq.ModelError)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (7, "not JSON of a tree"),
        ([], "not JSON of a tree"),
        ({}, "not JSON of a tree"),
        ({"schema": 1, "leaves": 3}, "not JSON of a tree"),
        ({"schema": 2, "leaves": 3}, "another schema version"),
    ],
)
def test_a_document_says_what_is_wrong_with_it(data: object, problem: str) -> None:
    """The version is looked at before the rest."""
    with pytest.raises(tq.ModelError, match=problem):
        from_document(data, 1, "a tree", tq.ModelError, lambda content: from_plain(Branch, content))
