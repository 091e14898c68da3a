"""Errors: fields for programs, sentences for people, and the builtin meaning."""

from __future__ import annotations

import copy
import pickle

import pytest

import torchquilt as tq
from torchquilt import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.TorchquiltError)
]


def make(kind: type[errors.TorchquiltError]) -> errors.TorchquiltError:
    """An error with every field."""
    extra = {"field": "eps"} if kind is tq.SpecError else {}
    return kind(
        "It does not fit.",
        node="conv",
        quantizer="acme",
        expected="a conv",
        got=[1, 2],
        remedy="pass a conv",
        **extra,
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_kept_and_printed(kind: type[errors.TorchquiltError]) -> None:
    """All that the text of an error says can be read as fields."""
    error = make(kind)
    assert (error.problem, error.node, error.quantizer) == ("It does not fit.", "conv", "acme")
    assert (error.expected, error.got, error.remedy) == ("a conv", [1, 2], "pass a conv")
    assert str(error).splitlines() == [
        "It does not fit.",
        "  node: conv",
        "  quantizer: acme",
        "  expected: a conv",
        "  got: [1, 2]",
        "  to fix it: pass a conv",
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_errors_cross_processes(kind: type[errors.TorchquiltError], way: str) -> None:
    """A pickled or copied error has the same fields and text."""
    error = make(kind)
    other = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert type(other) is kind
    assert str(other) == str(error)
    assert vars(other) == vars(error)
    assert other.args == error.args


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (tq.SpecError, ValueError),
        (tq.UnsupportedConfigError, ValueError),
        (tq.IntentError, ValueError),
        (tq.AnnotationError, ValueError),
        (tq.SharingError, ValueError),
        (tq.ModelError, ValueError),
        (tq.CompositionError, RuntimeError),
        (tq.QuantizerError, RuntimeError),
        (tq.CalibrationError, RuntimeError),
        (tq.PluginNotFoundError, LookupError),
        (tq.PluginLoadError, ImportError),
    ],
    ids=lambda kind: kind.__name__,
)
def test_errors_are_caught_by_their_builtin_meaning(
    kind: type[errors.TorchquiltError], builtin: type[Exception]
) -> None:
    """Except ValueError and the like work as people expect, and so does except TorchquiltError."""
    with pytest.raises(builtin):
        raise make(kind)
    with pytest.raises(tq.TorchquiltError):
        raise make(kind)


def test_fields_that_are_not_known_are_not_printed() -> None:
    """An error with a problem alone is that one line."""
    assert str(tq.ModelError("Nothing to do.")) == "Nothing to do."
