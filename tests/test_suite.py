"""The tests themselves: none that cannot fail, and each draws the same numbers in every run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob("test_*.py"))
#: What draws from a generator of its own, which a test seeds.
GENERATORS = {"Random", "SystemRandom"}
#: Seeds the numbers of the process itself, to see that the flow does not draw them.
DRAWS_ON_PURPOSE = "test_global_state"


def asserted(tree: ast.AST) -> Iterator[ast.expr]:
    """The expressions that are asserted."""
    return (node.test for node in ast.walk(tree) if isinstance(node, ast.Assert))


def approximates_itself(test: ast.expr) -> bool:
    """Whether a value is compared with an approximation of itself: ``x == (4, approx(x[1]))``."""
    if not isinstance(test, ast.Compare):
        return False
    sides = (test.left, *test.comparators)
    approximated = [
        (side, ast.unparse(node.args[0]))
        for side in sides
        for node in ast.walk(side)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("approx") and node.args
    ]
    return any(
        value.startswith(ast.unparse(other))
        for side, value in approximated
        for other in sides
        if other is not side and not isinstance(other, ast.Constant)
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_compared_with_itself(path: Path) -> None:
    """A value is near itself whatever it is, and a constant is true whatever was done."""
    found = [
        f"{path.name}:{test.lineno}: {ast.unparse(test)}"
        for test in asserted(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(test, ast.Constant) or approximates_itself(test)
    ]
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_chance_is_seeded(path: Path) -> None:
    """Numbers come from a generator that a test makes, not from the one of the process."""
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) in ("random", "np.random", "numpy.random")
        and node.func.attr not in GENERATORS
        and path.stem != DRAWS_ON_PURPOSE
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "is_caught"),
    [
        ("report.moves[-1] == (40, pytest.approx(report.moves[-1][1]))", True),
        ("x == approx(x)", True),
        ("approx(x.y) == x", True),
        ("x == approx(y)", False),
        ("large - middle == approx(2 * (middle - small))", False),
        ("0 == approx(x)", False),
    ],
)
def test_the_rule_sees_what_it_is_for(code: str, is_caught: bool) -> None:
    """A comparison that holds whatever the value is, and none that may fail."""
    assert approximates_itself(ast.parse(code, mode="eval").body) == is_caught


def test_the_files_of_the_inner_loop_are_there() -> None:
    """Each file that ``make test-fast`` runs is there, once; none of them takes long."""
    named = (HERE / "fast.txt").read_text().split()
    paths = [HERE.parent / name for name in named]
    assert len(set(paths)) == len(paths)
    assert [path for path in paths if path not in FILES] == []
    assert [path for path in paths if "pytest.mark.long" in path.read_text()] == []
