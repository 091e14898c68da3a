"""Capabilities as values: merged, compared, printed, written as JSON and read without torch."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchquilt as tq
from pages import Page
from torchquilt_executorch_embedding import SUPPORT as EMBEDDING
from torchquilt_xnnpack import SUPPORT, XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config(is_per_channel=True)
BOTH = EMBEDDING.capabilities() | SUPPORT.capabilities()
#: The rows of XNNPACK, as if another backend had them.
THEIRS = tq.Capabilities(tuple(attrs.evolve(row, backend="acme") for row in SUPPORT.capabilities()))

# ----------------------------------------------------------------------------------------------------------
# Merging
# ----------------------------------------------------------------------------------------------------------

some_rows = st.lists(st.sampled_from(list(BOTH.rows)), max_size=8).map(
    lambda rows: tq.Capabilities(tuple(dict.fromkeys(rows)))
)


@settings(max_examples=60)
@given(some_rows, some_rows, some_rows)
def test_merging_is_associative_and_keeps_order(
    a: tq.Capabilities, b: tq.Capabilities, c: tq.Capabilities
) -> None:
    """(a | b) | c is a | (b | c): first all of a, then what is new of b, then what is new of c."""
    merged = (a | b) | c
    assert merged == a | (b | c)
    assert merged.rows[: len(a)] == a.rows
    new = [row for row in b.rows if row not in a.rows]
    assert list(merged.rows[len(a) : len(a) + len(new)]) == new


@settings(max_examples=40)
@given(some_rows)
def test_merging_with_itself_or_nothing_changes_nothing(a: tq.Capabilities) -> None:
    """A row that is there already is not repeated, and the empty capabilities add nothing."""
    assert a | a == a
    assert a | tq.Capabilities() == a
    assert tq.Capabilities() | a == a


def test_the_first_backend_that_takes_a_thing_is_the_answer() -> None:
    """Of two backends with one capability, supports() names the one that was merged first."""
    ours = SUPPORT.capabilities()
    for first, second in ((THEIRS, ours), (ours, THEIRS)):
        answer = (first | second).supports(nn.Linear, STATIC)
        assert answer.capability is not None
        assert answer.capability.backend == first.rows[0].backend
        assert answer.behind == second.backends
        assert str(answer).endswith(f"comes before {second.rows[0].backend}")
    assert ours.supports(nn.Linear, STATIC).behind == ()


def test_who_comes_first_is_told_of_each_operator_that_several_have() -> None:
    """A contest for each such operator, in order of precedence, in print and in JSON; none without."""
    some = tq.Capabilities(tuple(row for row in THEIRS if row.operators[0] in ("linear", "cat")))
    merged = some | SUPPORT.capabilities()
    assert merged.backends == ("acme", "xnnpack")
    assert {(contest.operator, contest.backends) for contest in merged.contested} == {
        ("linear", ("acme", "xnnpack")),
        ("cat", ("acme", "xnnpack")),
    }
    assert "linear: acme, then xnnpack" in str(merged)
    assert {"operator": "linear", "backends": ["acme", "xnnpack"]} in json.loads(merged.to_json())[
        "contested"
    ]
    other = SUPPORT.capabilities() | some
    assert {contest.backends for contest in other.contested} == {("xnnpack", "acme")}
    assert BOTH.contested == ()
    assert "first" not in str(BOTH)


def test_a_contest_is_about_the_operator_and_not_its_name() -> None:
    """Two backends that call one overload differently compete for it."""
    row, *_ = SUPPORT.capabilities().filter("linear", mode="dynamic")
    other = tq.Capabilities((attrs.evolve(row, backend="acme", pattern="fc", operators=("fc",)),))
    (contest,) = (other | tq.Capabilities((row,))).contested
    assert contest.backends == ("acme", "xnnpack")


# ----------------------------------------------------------------------------------------------------------
# Comparing
# ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(some_rows, some_rows)
def test_a_diff_is_empty_exactly_where_capabilities_are_equal(a: tq.Capabilities, b: tq.Capabilities) -> None:
    """Rows that one lacks, and another order, are changes; each names its row, and can be turned round."""
    changes = a.diff(b)
    assert (changes == ()) == (a == b)
    assert (a.content_hash == b.content_hash) == (a == b)
    assert a.diff(a) == ()
    back = {(change.row, change.field, change.after, change.before) for change in b.diff(a)}
    assert {(change.row, change.field, change.before, change.after) for change in changes} == back
    missing = {row.label for row in a.rows} - {row.label for row in b.rows}
    assert {change.row for change in changes if (change.field, change.after) == ("", "absent")} == missing


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"targets": ("phone",)}, "targets: executorch → phone"),
        ({"targets": ()}, "targets: executorch → –"),
        ({"constraints": (("rank", "two dimensions"),)}, "two dimensions (rank)"),
        ({"sharing": "all"}, "sharing: none → all"),
        ({"presets": ("fast",)}, "presets: – → fast"),
        ({"specs": (("weight", (tq.AllowedSpec("int8", -8, 7, ("per_tensor",)),)),)}, "[-8, 7]"),
    ],
    ids=str,
)
def test_a_row_that_changed_is_named_with_what_changed(change: dict[str, Any], text: str) -> None:
    """Each field of a row that differs is a change, in words; the specs role by role."""
    row, *_ = SUPPORT.capabilities().filter("linear", mode="dynamic")
    before, after = tq.Capabilities((row,)), tq.Capabilities((attrs.evolve(row, **change),))
    changes = before.diff(after)
    assert all(found.row == "linear (dynamic) of xnnpack" for found in changes)
    assert any(text in str(found) for found in changes)
    roles = [found.field for found in changes]
    assert roles == (["input_activation", "weight"] if "specs" in change else [*change])


def test_another_order_is_a_change() -> None:
    """The first backend keeps a node, so capabilities in another order are others."""
    one, two = SUPPORT.capabilities().rows[:2]
    (change,) = tq.Capabilities((one, two)).diff(tq.Capabilities((two, one)))
    assert change.field == "order"
    assert (change.before, change.after) == (f"{one.label}, {two.label}", f"{two.label}, {one.label}")


def test_the_hash_is_that_of_the_content_on_every_machine() -> None:
    """Another process, with other hash seeds, comes to the same hash; another row, to another one."""
    code = """
from torchquilt_xnnpack import SUPPORT
print(SUPPORT.capabilities().content_hash)
"""
    assert in_another_process(code, PYTHONHASHSEED="1").strip() == SUPPORT.capabilities().content_hash
    assert THEIRS.content_hash != SUPPORT.capabilities().content_hash
    assert SUPPORT.capabilities().filter("linear").content_hash != SUPPORT.capabilities().content_hash


# ----------------------------------------------------------------------------------------------------------
# JSON and print
# ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(some_rows)
def test_json_and_back_is_the_same(rows: tq.Capabilities) -> None:
    """to_json and from_json are inverse, to rows that compare and hash equal."""
    again = tq.Capabilities.from_json(rows.to_json())
    assert again == rows
    assert hash(again) == hash(rows)
    assert again.to_json() == rows.to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "3",
        '{"rows": []}',
        '{"schema": 1}',
        '{"schema": 99, "rows": []}',
        '{"schema": 1, "rows": [{}]}',
        '{"schema": 1, "rows": [3]}',
        '{"schema": 1, "rows": 3}',
    ],
)
def test_json_of_something_else_is_refused(text: str) -> None:
    """Text that is not capabilities of this schema is an error of ours."""
    with pytest.raises(tq.PatternError):
        tq.Capabilities.from_json(text)


def test_capabilities_are_made_and_read_without_torch(tmp_path: Path) -> None:
    """A process that never imports torch reads the plugins' tables, asks, and prints what this one does."""
    (tmp_path / "rows.json").write_text(BOTH.to_json())
    code = """
import sys
from pathlib import Path
import torchquilt as tq
from torchquilt_xnnpack import SUPPORT
from torchquilt_executorch_embedding import SUPPORT as EMBEDDING
read = tq.Capabilities.from_json(Path(sys.argv[1]).read_text())
assert read == EMBEDDING.capabilities() | SUPPORT.capabilities()
assert read.diff(SUPPORT.capabilities())
assert len(read.filter("nn.Linear", mode="dynamic", dtype="int8", bits=8, target="executorch")) == 6
assert "linear" in read._repr_html_()
print(read)
assert "torch" not in sys.modules, "torch was imported"
"""
    assert in_another_process(code, str(tmp_path / "rows.json")).strip() == str(BOTH).strip()


def test_the_printed_table_has_a_line_for_each_row() -> None:
    """Header, rule, and one line a row with backend, pattern, mode, targets, specs and limits in columns."""
    lines = str(BOTH).splitlines()
    assert len(lines) == len(BOTH) + 2
    assert re.split("  +", lines[0]) == ["backend", "pattern", "mode", "integers on", "specs", "limits"]
    start = lines[0].index("mode")
    for line, row in zip(lines[2:], BOTH, strict=True):
        assert line.startswith(row.backend)
        assert line[start:].startswith(row.mode)
        assert row.pattern in line
        assert "executorch" in line
        assert row.spec_text() in line
        assert line.endswith(row.limit_text() or "–")


def test_the_limits_of_a_row_are_told_wherever_it_is() -> None:
    """As numbers in the data and JSON, in words in the table, the row by itself, and a notebook."""
    limits = tq.ArithmeticLimits(accumulator_bits=24, product_ratio=2.5, input_ratio=8)
    first, second = (
        row for row in SUPPORT.rows if row.pattern.name in ("linear", "add") and row.mode == "static"
    )
    given = attrs.evolve(
        SUPPORT, rows=(attrs.evolve(first, limits=limits), attrs.evolve(second, limits=None))
    )
    row, other = given.capabilities()
    assert dict(row.limits) == {"accumulator_bits": 24, "product_ratio": 2.5, "input_ratio": 8}
    texts = (
        "accumulator of 24 bits",
        "product of input scales < 2.5 output scales",
        "each input scale < 8 output scales",
    )
    assert other.limits == ()
    assert "limits" not in str(other)
    for shown in (str(given.capabilities()), str(row), given.capabilities()._repr_html_()):
        assert all(html.escape(text) in shown or text in shown for text in texts)
    read = tq.Capabilities.from_json(given.capabilities().to_json())
    assert read == given.capabilities()
    assert read.content_hash == given.capabilities().content_hash


def test_another_limit_is_a_change() -> None:
    """A backend whose kernels hold less can do less."""
    (linear,) = (row for row in SUPPORT.rows if row.pattern.name == "linear" and row.mode == "static")
    tables = [
        attrs.evolve(SUPPORT, rows=(attrs.evolve(linear, limits=limits),))
        for limits in (tq.ArithmeticLimits(accumulator_bits=32), tq.ArithmeticLimits(accumulator_bits=16))
    ]
    (change,) = tables[0].capabilities().diff(tables[1].capabilities())
    assert (change.field, change.before, change.after) == (
        "limits",
        "32 (accumulator_bits)",
        "16 (accumulator_bits)",
    )


def test_a_table_of_rows_without_limits_has_no_column_of_them() -> None:
    """As that of rules: a column is there only if some row has something for it."""
    assert str(EMBEDDING.capabilities()).splitlines()[0].endswith("specs")


def test_a_table_with_probed_rows_says_of_each_how_it_is_known() -> None:
    """The others are known from a table. Without any probed row there is no such column."""
    first, second = EMBEDDING.capabilities().rows[:2]
    header, *lines = tq.Capabilities((attrs.evolve(first, probed="today"), second)).cells()
    assert (header[-1], *(line[-1] for line in lines)) == ("known from", "probing", "its table")
    assert "known from" not in tq.Capabilities((first, second)).cells()[0]


def test_a_narrow_table_has_limits_below_the_specs() -> None:
    """Instead of a column of their own."""
    row = next(row for row in SUPPORT.capabilities() if row.limits)
    header, cells = tq.Capabilities((row,)).cells(is_narrow=True)
    assert "limits" not in header
    assert len(cells) == len(header)
    assert cells[-1].endswith(f"limits: {row.limit_text()}")


def test_rows_of_an_earlier_torchquilt_have_no_limits() -> None:
    """Its JSON is read; what is no number is no limit."""
    data = json.loads(SUPPORT.capabilities().to_json())
    for row in data["rows"]:
        del row["limits"]
    assert not any(row.limits for row in tq.Capabilities.from_json(json.dumps(data)))
    data["rows"][0]["limits"] = [["product_ratio", "many"]]
    with pytest.raises(tq.TorchquiltError, match="not JSON"):
        tq.Capabilities.from_json(json.dumps(data))


def test_a_table_with_rules_says_where() -> None:
    """Capabilities of a configured quantizer show the rule that asks."""
    quantizer = XNNPACKQuantizer().set_module_name("encoder", STATIC)
    text = str(quantizer.quantization_capabilities())
    assert "where" in text.splitlines()[0]
    assert "module encoder" in text


def test_capabilities_in_a_debugger_are_one_line() -> None:
    """The table is what is printed."""
    assert (
        repr(BOTH)
        == f"<Capabilities: {len(BOTH)} rows of executorch_embedding, xnnpack; print them for the table>"
    )
    assert "no backend" in repr(tq.Capabilities())


def test_rows_are_found_by_the_role_alone() -> None:
    """Those that quantize it, of whatever dtype."""
    found = BOTH.filter(role="weight")
    assert 0 < len(found) < len(BOTH)
    assert set(found) == {row for row in BOTH if "weight" in dict(row.specs)}


def test_a_backend_that_does_not_take_the_config_is_not_behind_the_first() -> None:
    """Though it has rows for the operator."""
    dynamic = (row for row in SUPPORT.capabilities().filter("linear") if row.mode == "dynamic")
    other = tq.Capabilities(tuple(attrs.evolve(row, backend="other") for row in dynamic))
    answer = (SUPPORT.capabilities() | other | THEIRS).supports("linear", STATIC)
    assert answer
    assert answer.behind == ("acme",)


def test_nothing_is_printed_as_such() -> None:
    """Empty capabilities are said in words."""
    assert str(tq.Capabilities()) == "no capabilities"


def test_the_json_is_plain() -> None:
    """Rows are objects of text, numbers, lists; the schema has a number."""
    data = json.loads(BOTH.to_json())
    assert data["schema"] == 1
    assert {row["backend"] for row in data["rows"]} == {"xnnpack", "executorch_embedding"}
    assert not any("probed" in row for row in data["rows"])


def test_a_row_by_itself_tells_all_about_it() -> None:
    """Names, specs, targets, presets and each constraint with its code."""
    row, *_ = XNNPACKQuantizer.backend_capabilities().filter("linear", mode="dynamic")
    text = str(row)
    assert [line.startswith("  ") for line in text.splitlines()] == [False] + [True] * text.count("\n")
    for part in (
        "linear (dynamic) of xnnpack",
        "torch.nn.functional.linear",
        "aten.linear.default",
        "input: int8 per_token affine dynamic",
        "integers on: executorch",
        "dynamic_int8_per_channel",
        *(f"only if {condition} ({code})" for code, condition in row.constraints),
    ):
        assert part in text


# ----------------------------------------------------------------------------------------------------------
# In a notebook
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "<img src=x onerror=y>", "a & b < c", "\"'>"])
def test_html_escapes_every_text(evil: str) -> None:
    """Whatever a plugin calls its things is shown as text, and is no markup."""
    row, *_ = SUPPORT.capabilities().filter("linear", mode="dynamic")
    nasty = attrs.evolve(
        row, backend=evil, pattern=evil, scope=evil, targets=(evil,), constraints=((evil, evil),)
    )
    page = Page((tq.Capabilities((nasty,)) | tq.Capabilities((row,)))._repr_html_())
    plain = Page(tq.Capabilities((attrs.evolve(nasty, backend="b", pattern="p"), row))._repr_html_())
    assert [
        tag for tag, _ in page.tags if tag not in ("table", "tr", "th", "td", "br", "p", "ul", "li")
    ] == []
    assert page.texts.count(evil) == 5
    assert len(page.tags) == len(plain.tags)
    assert not page.open


def test_html_has_all_that_the_table_has_and_loads_nothing() -> None:
    """A row for each row with its constraints; no script, style sheet, image or link."""
    page = Page((THEIRS | SUPPORT.capabilities())._repr_html_())
    assert sum(tag == "tr" for tag, _ in page.tags) == 1 + len(THEIRS) + len(SUPPORT.rows)
    for row in SUPPORT.rows:
        assert row.pattern.name in page.texts
        assert all(constraint.text in page.texts for constraint in row.constraints)
    assert "linear: acme, then xnnpack" in page.texts
    assert {name for _, found in page.tags for name in found} <= {"style"}
    assert not any("url" in (found.get("style") or "") for _, found in page.tags)
    assert tq.Capabilities()._repr_html_() == "<p>no capabilities</p>"


def in_another_process(code: str, *arguments: str, **variables: str) -> str:
    """Output of code in an interpreter of its own that finds the same packages."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
