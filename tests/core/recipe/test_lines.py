"""The lines of a TOML document: where each key and value stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from torchquilt.recipe.source_location import lines_of


def locations(value: object, steps: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to everything in a document."""
    children: Any = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    for step, child in children:
        yield (*steps, step)
        yield from locations(child, (*steps, step))


HARD = '''\
# [not.a.table] = "in a comment"
a = 1 # b = 2
"q u" . 'o."t' . z = "# no comment \\" = ["
text = """
[also.no.table]
x = 1 \\""" "" """""
raw = \'\'\'
c:\\\'\'\'
d.e = [ # a comment
  1, [2,
  { f = "}" , g.h = 3 }], # ]
  "\\u005d",
]
date = 2020-01-01 10:00:00

[ t . "u.v" ]  # [x]
w = { }
[[t."u.v".list]]
[[t."u.v".list]]
y = true
[t."u.v".list.deep]
z = 1.5e3
[[t."u.v".list.array]]
v = \'\'
[t]
last = [
]'''

HARD_LINES = {
    ("a",): 2,
    ("q u",): 3, ("q u", 'o."t'): 3, ("q u", 'o."t', "z"): 3,
    ("text",): 4,
    ("raw",): 7,
    ("d",): 9, ("d", "e"): 9, ("d", "e", 0): 10, ("d", "e", 1): 10, ("d", "e", 1, 0): 10,
    ("d", "e", 1, 1): 10, ("d", "e", 1, 1, "f"): 10, ("d", "e", 1, 1, "g"): 10,
    ("d", "e", 1, 1, "g", "h"): 10, ("d", "e", 2): 12,
    ("date",): 14,
    ("t",): 16, ("t", "u.v"): 16, ("t", "u.v", "w"): 17,
    ("t", "u.v", "list"): 18, ("t", "u.v", "list", 0): 18, ("t", "u.v", "list", 1): 19,
    ("t", "u.v", "list", 1, "y"): 20,
    ("t", "u.v", "list", 1, "deep"): 21, ("t", "u.v", "list", 1, "deep", "z"): 22,
    ("t", "u.v", "list", 1, "array"): 23, ("t", "u.v", "list", 1, "array", 0): 23,
    ("t", "u.v", "list", 1, "array", 0, "v"): 24,
    ("t", "last"): 26,
}  # fmt: skip


def test_lines_are_found_in_all_that_toml_allows() -> None:
    """Comments, four kinds of strings, dotted and quoted keys, nested arrays and tables do not mislead it.

    What is in an array in an array over several lines has the line of the element of the outer one.
    """
    assert lines_of(HARD) == HARD_LINES
    assert set(locations(tomlkit.parse(HARD).unwrap())) == set(HARD_LINES)


keys = st.text("ab.\"' #[]=\\\n", min_size=1, max_size=3) | st.sampled_from(["a", "b", "c"])
scalars = st.text("ab\"'#[]{}=,\\\n\r\t", max_size=6) | st.integers(-9, 9) | st.booleans() | st.floats(-1, 1)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(keys, values, max_size=4))
def test_everything_in_a_document_has_its_line(document: dict[str, Any]) -> None:
    """Each key and element that the parser finds is located, nothing else is, and keys on their own line."""
    text = tomlkit.dumps(document)
    lines = lines_of(text)
    assert set(lines) == set(locations(tomlkit.parse(text).unwrap()))
    for steps, line in lines.items():
        key = next(step for step in reversed(steps) if isinstance(step, str))
        if key.isalpha() and isinstance(steps[-1], str):
            assert key in text.split("\n")[line - 1]
