"""Requirements on every quantizer class, whatever its table says: mandatory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from torchquilt.quantizers.pattern_quantizer import PatternQuantizer
from torchquilt.support.capabilities import Capabilities
from torchquilt.testing.configs import configs_of
from torchquilt.testing.subject import Subject


def _through_pickle(quantizer: PatternQuantizer) -> PatternQuantizer:
    found: PatternQuantizer = pickle.loads(pickle.dumps(quantizer))
    return found


@pytest.fixture
def asked(subject: Subject) -> PatternQuantizer:
    """A quantizer with a rule of each kind."""
    config = configs_of(subject.rows[0])[0]
    return subject.cls().set_global(config).set_module_name("a.module", None)


def test_the_table_claims_something(subject: Subject) -> None:
    """A backend without rows would pass every other test."""
    assert subject.rows


def test_the_class_is_made_without_arguments(subject: Subject) -> None:
    """A backend that is asked for by name is made by calling its class, twice to the same effect."""
    assert subject.cls() == subject.cls()


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, _through_pickle], ids=["copy", "deepcopy", "pickle"]
)
def test_a_quantizer_survives(
    asked: PatternQuantizer, duplicate: Callable[[PatternQuantizer], PatternQuantizer]
) -> None:
    """A copy, and what comes back from a pickle, equals the quantizer and claims the same."""
    found = duplicate(asked)
    assert type(found) is type(asked)
    assert found == asked
    assert found.quantization_capabilities() == asked.quantization_capabilities()


def test_a_quantizer_that_is_asked_for_something_else_is_not_equal(
    subject: Subject, asked: PatternQuantizer
) -> None:
    """Equality is about what is asked, so that a duplicate being equal means something."""
    assert asked != subject.cls()


def test_changing_a_copy_leaves_the_original(asked: PatternQuantizer) -> None:
    """Rules that are given to a copy are not rules of the original."""
    before = asked.quantization_capabilities()
    copy.copy(asked).set_global(None)
    assert asked.quantization_capabilities() == before


def test_the_query_answers_from_the_table(subject: Subject) -> None:
    """The backend answers from its table, and the answer survives being written as JSON."""
    capabilities = subject.cls.backend_capabilities()
    presets = {name: make() for name, make in subject.cls.PRESETS.items()}
    assert capabilities == subject.table.capabilities(presets)
    assert Capabilities.from_json(capabilities.to_json()) == capabilities


def test_every_preset_is_supported(subject: Subject) -> None:
    """Each preset makes a quantizer of this class, for which the table has at least one row."""
    for name in subject.cls.PRESETS:
        made = subject.cls.from_preset(name)
        assert type(made) is subject.cls, name
        assert len(made.quantization_capabilities()), name
