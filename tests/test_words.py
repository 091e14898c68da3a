"""The words of the project: those of the field, and none that only we used."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def words() -> ModuleType:
    """The check that ``make check`` runs."""
    spec = importlib.util.spec_from_file_location("words", Path(__file__).parents[1] / "checks/words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_phrase_of_the_list_is_used(words: ModuleType) -> None:
    """Nothing that is shipped, tested or written has one, but for the exceptions, each with a reason."""
    assert words.hits() == []


def test_a_phrase_is_found_over_the_end_of_a_line(words: ModuleType) -> None:
    """Its line is that of its beginning."""
    text = "first\n# one thing that is in two\n# lines of it\n"
    assert [*words.phrases(text, [(re.compile(r"two lines"), "both")])] == [(2, "two lines", "both")]


def test_each_exception_has_a_reason(words: ModuleType) -> None:
    """A path that is there, a text, and why."""
    for path, text, reason in words.table("words_allowed.txt"):
        assert (words.ROOT / path).is_file()
        assert text
        assert len(reason) > 20
