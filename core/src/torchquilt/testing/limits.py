"""The limits of a row: its constraints, and beyond them what it has to do and what it has to say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import pytest

from torchquilt.errors import TorchquiltError
from torchquilt.quantizers.claim import Claim
from torchquilt.reasons import REASONS
from torchquilt.spec.annotation import annotation_of
from torchquilt.support.constraints import CONSTANT_WEIGHT, input_rank, one_dtype
from torchquilt.support.table import Constraint, SupportRow
from torchquilt.testing.bench import Bench
from torchquilt.testing.examples import Example
from torchquilt.testing.trials import Trial, has_quantized_tensors

# What the ready constraints of the core mean, known from how an example was made and not from its graph.
_Meaning = Callable[[Example], bool | None]
_MEANINGS: dict[tuple[str, str], _Meaning] = {
    (CONSTANT_WEIGHT.code, CONSTANT_WEIGHT.text): lambda example: example.has_constant_weight,
}


# Why a row may leave a model that stands for its pattern, asked for a config that it takes.
_REASONS = frozenset(reason.code for reason in REASONS if reason.is_of_model)


def describe(trial: Trial) -> str:
    """A trial in one line, for messages."""
    return (
        f"{trial.row.pattern.name} ({trial.row.mode}), model {trial.example.label}, asked for {trial.config}"
    )


def check_limits(trial: Trial, reached: dict[str, set[bool]]) -> None:
    """Hold a model against the constraints of the row: either the row does it, or says what does not hold.

    Args:
        trial: the model.
        reached: for each constraint the sides of it that were seen so far; this model's are added.
    """
    match, verdict = trial.judged()
    if match is None:
        return  # a way to call the operator that is not of this pattern, with another overload
    broken = trial.broken(match)
    for constraint in trial.row.constraints:
        reached[constraint.code].add(constraint not in broken)
        _check_meaning(trial, constraint, constraint not in broken)
    if isinstance(verdict, Claim):
        assert not broken, f"{describe(trial)}: claimed, though not {broken[0].text}"
        _check_works(trial)
    else:
        _check_refused(trial, verdict.code, [f"constraint:{constraint.code}" for constraint in broken])


def check_can_break(row: SupportRow, bench: Bench, reached: Mapping[str, set[bool]]) -> None:
    """Refuse a constraint that held for every model: it says nothing, or nothing shows what it says.

    Args:
        row: the row.
        bench: with the models of the other rows that have the constraint.
        reached: as for :func:`check_limits`.
    """
    for constraint in row.constraints:
        is_exempt = bench.subject.exemptions.get(f"constraint:{constraint.code}")
        # Of those of the core the meaning is known, and each model is held against it.
        if is_exempt or _meaning(constraint) or False in reached[constraint.code]:
            continue
        if bench.is_broken_somewhere(constraint):
            continue
        pytest.fail(
            f"No model breaks the constraint {constraint.code!r} of {row.pattern.name} ({row.mode}): "
            f"{constraint.text}.\nEither it is always true, or a model that breaks it has to be supplied as "
            f"one of conformance_examples[{row.pattern.name!r}]. Where none can be made, say why: "
            f"conformance_exemptions = {{'constraint:{constraint.code}': 'the reason'}}.",
            pytrace=False,
        )


def _check_meaning(trial: Trial, constraint: Constraint, holds: bool) -> None:
    meaning = _meaning(constraint)
    expected = meaning(trial.example) if meaning else None
    assert expected in (None, holds), (
        f"{describe(trial)}: the constraint {constraint.code!r} says that {constraint.text}; "
        f"this is {expected}, and it finds {holds}"
    )


def _meaning(constraint: Constraint) -> _Meaning | None:
    known = _MEANINGS.get((constraint.code, constraint.text))
    return known or _meaning_of_rank(constraint) or _meaning_of_dtype(constraint)


def _meaning_of_rank(constraint: Constraint) -> _Meaning | None:
    """The meaning of :func:`torchquilt.support.constraints.input_rank`, whose text has the numbers in it."""
    ranks = [int(number) for number in re.findall(r"\d+", constraint.text)]
    if not ranks or (constraint.code, constraint.text) != (input_rank(*ranks).code, input_rank(*ranks).text):
        return None
    return lambda example: example.rank in ranks


def dtypes_of(constraint: Constraint) -> tuple[str, ...]:
    """The dtypes of a constraint that :func:`torchquilt.support.constraints.one_dtype` made; of another
    none.
    """
    names = tuple(re.findall(r"\bb?float\d+", constraint.text))
    return names if names and constraint.text == one_dtype(*names).text else ()


def _meaning_of_dtype(constraint: Constraint) -> _Meaning | None:
    """The meaning of :func:`torchquilt.support.constraints.one_dtype`, whose text has the names in it."""
    names = dtypes_of(constraint)
    if not names:
        return None

    def holds(example: Example) -> bool | None:
        """Unknown with integers, which may be indices and no operands."""
        floats = {dtype for dtype in example.dtypes if dtype.is_floating_point}
        if len(floats) != 1 or str(*floats).removeprefix("torch.") not in names:
            return False
        return True if floats == example.dtypes else None

    return holds


def _check_works(trial: Trial) -> None:
    """Check that a claimed model converts and is near the float operator; otherwise the row is too wide."""
    try:
        trial.run(trial.example.module)
    except (RuntimeError, NotImplementedError):
        return  # torch has no kernel for this dtype on this machine, so there is nothing to compare with
    try:
        quantized = trial.convert()
        ratio = trial.sqnr(quantized)
    except (TorchquiltError, RuntimeError, ValueError, AssertionError) as error:
        pytest.fail(
            f"The row is too wide: {describe(trial)} is claimed, and does not convert:\n{error}\n"
            "Add a constraint for it, or narrow the specs.",
            pytrace=False,
        )
    assert has_quantized_tensors(quantized), f"{describe(trial)}: claimed, and nothing of it is quantized"
    bound = trial.least_sqnr()
    if math.isnan(ratio) or ratio < bound:
        pytest.fail(
            f"The row is too wide: {describe(trial)} is claimed with an SQNR of {ratio:.1f} dB; "
            f"it has to be {bound:.1f} dB or more.",
            pytrace=False,
        )


def _check_refused(trial: Trial, code: str, broken: list[str]) -> None:
    """Check that a refusal has a reason, a constraint that does not hold if there is one, and no
    annotation.
    """
    kind = code.partition(":")[0]
    assert kind in _REASONS, f"{describe(trial)}: refused with {code!r}, which says nothing about this model"
    if kind == "constraint":
        assert code in broken, f"{describe(trial)}: refused with {code}, and what does not hold is {broken}"
    patterns = [annotation_of(node) for node in trial.annotate().graph.nodes]
    mine = [a for a in patterns if a and a.quantizer == trial.quantizer().name]
    assert trial.row.pattern.name not in [a.pattern for a in mine], (
        f"{describe(trial)}: refused with {code}, and annotated all the same"
    )
