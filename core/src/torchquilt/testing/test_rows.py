"""Rows do what they claim, and refuse the rest with a reason. Tested for each row."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule

from torchquilt.errors import IntentError, UnsupportedConfigError
from torchquilt.graph.node_values import overload_name
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.quantizers.claim import Claim
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.qspec import EdgeOrNode
from torchquilt.support.operators import Operator
from torchquilt.support.pattern import OperatorPattern
from torchquilt.support.table import Sharing, SupportRow
from torchquilt.testing.bench import Bench
from torchquilt.testing.configs import configs_of, group_size, near_misses
from torchquilt.testing.conftest import NoteDown
from torchquilt.testing.examples import examples_of
from torchquilt.testing.limits import check_can_break, check_limits, describe
from torchquilt.testing.operators import Sizes
from torchquilt.testing.specs import own_spec, takes
from torchquilt.testing.subject import Subject
from torchquilt.testing.trials import Trial, annotated, decisions, has_quantized_tensors, renamed, sqnr

#: Signal to noise in dB of float operators that compute the same in another order, by the fewest bits.
_SAME = {"torch.float32": 90.0, "torch.float16": 45.0, "torch.bfloat16": 30.0}


def test_a_row_annotates(row: SupportRow, bench: Bench, note: NoteDown) -> None:
    """Asked for a config that the row takes, the quantizer annotates what the row claims, as asked."""
    note("annotates", "")
    for trial in bench.find_models(row):
        _, claim = trial.judged()
        assert isinstance(claim, Claim)
        model, name = trial.annotate(), trial.quantizer().name
        nodes = [node for node in model.graph.nodes if node.name == claim.match.anchor.name]
        found = annotation_of(nodes[0]) if nodes else None
        assert found is not None, f"the table claims {describe(trial)}, and nothing is annotated"
        assert found.quantizer == name, f"{describe(trial)}: annotated in the name of {found.quantizer!r}"
        for operand, user, role in claim.match.operands:
            spec = own_spec(_edge(model, operand.name, user.name))
            assert takes(row, role, spec), f"{describe(trial)}: {role} is annotated with {spec}"


def _edge(model: GraphModule, source: str, user: str) -> EdgeOrNode:
    """An input of a node, both by name, or what the backend computes from it for the node to read."""
    (reader,) = [node for node in model.graph.nodes if node.name == user]
    for producer in reader.all_input_nodes:
        pending = [producer]
        for node in pending:  # grows while it is walked
            if node.name == source:
                return producer, reader
            pending += node.all_input_nodes
    return reader, reader  # the backend replaced it, so nothing is annotated there


def test_a_row_converts(row: SupportRow, bench: Bench, note: NoteDown) -> None:
    """A claim of the row converts, and stays within its bound of the float operator."""
    note("converts", "")
    worst = math.inf
    for trial in bench.models(row):
        quantized = trial.convert()
        assert has_quantized_tensors(quantized), (
            f"{describe(trial)}: the converted model has nothing quantized"
        )
        ratio, bound = trial.sqnr(quantized), trial.least_sqnr()
        worst = min(worst, ratio)
        note("SQNR", f"{worst:.0f} dB")
        assert ratio >= bound, (
            f"{describe(trial)}: SQNR is {ratio:.1f} dB, and has to be {bound:.1f} dB or more"
        )


def test_what_a_row_does_not_take_is_refused(
    row: SupportRow, bench: Bench, subject: Subject, note: NoteDown
) -> None:
    """A config that no row takes is an error that says what differs; one for other rows leaves this be."""
    note("refused", "")
    first = bench.models(row)[0]
    for config in near_misses(row):
        takers = [other for other in subject.rows if not other.differences(config)]
        if not takers:
            with pytest.raises(UnsupportedConfigError) as error:
                subject.cls().set_global(config)
            assert error.value.got, f"the error for {config} does not say what differs"
            continue
        trial = Trial(row, config, subject.cls, first.example, first.model)
        _, verdict = trial.judged()
        assert not isinstance(verdict, Claim), (
            f"{row.pattern.name} is claimed for {config}, which it does not take"
        )
        assert verdict.code, f"{row.pattern.name} is refused for {config} without a reason"
        mine = _patterns(trial.annotate(), trial.quantizer().name)
        assert mine <= {other.pattern.name for other in takers}, f"asked for {config}, {mine} was annotated"


def test_a_row_trains(row: SupportRow, bench: Bench, note: NoteDown) -> None:
    """A match that the row claims takes a step of training, and converts to the bits that it computes then.

    A row that cannot be trained says so: a config that is meant for training is refused.
    """
    if not row.is_qat:
        note("trains", "no")
        asked = attrs.evolve(bench.models(row)[0].config, is_qat=True)
        assert row.differences(asked), f"{row.pattern.name} takes {asked}"
        return
    note("trains", "")
    for trial in bench.models(row):
        trained = trial.trained()
        expected, found = trial.run(trained.eval()), trial.run(convert_pt2e(trained))
        assert torch.equal(expected.nan_to_num(), found.nan_to_num()), (
            f"{describe(trial)}: trained and converted it returns something else than in evaluation mode"
        )
    note("trains", "yes")


def _patterns(model: GraphModule, quantizer: str) -> set[str]:
    """The patterns that a quantizer annotated."""
    found = [annotation_of(node) for node in model.graph.nodes]
    return {annotation.pattern for annotation in found if annotation and annotation.quantizer == quantizer}


def test_an_operator_without_a_row_stays_in_float(operator: Operator, bench: Bench, subject: Subject) -> None:
    """An operator that no row begins with is not annotated; one that is in no row cannot be asked for."""
    row = subject.rows[0]
    config = configs_of(row)[0]
    if all(operator not in other.pattern.operators for other in subject.rows):
        with pytest.raises(IntentError):
            subject.cls().set_object_type(operator.overloads[0], config)
    example = next(examples_of(OperatorPattern.of(operator), Sizes()))
    trial = bench.trial(row, example, config)
    model = trial.annotate()
    nodes = [node for node in model.graph.nodes if overload_name(node) in operator.overloads]
    assert nodes
    assert all(annotation_of(node) is None for node in nodes)


def test_the_limits_of_a_row_are_true(
    row: SupportRow, bench: Bench, note: NoteDown, pytestconfig: pytest.Config
) -> None:
    """The row claims and keeps its bound where all constraints hold, and elsewhere says which does not."""
    note("limits", "")
    config = bench.models(row)[0].config
    reached: dict[str, set[bool]] = {constraint.code: set() for constraint in row.constraints}
    for trial in bench.surveyed(row, config):
        check_limits(trial, reached)

    @settings(
        max_examples=pytestconfig.getoption("--torchquilt-shapes"),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        # The model in the message is small as it is; making it smaller would take minutes.
        phases=[Phase.generate],
    )
    @given(st.data())
    def with_drawn_shapes(data: st.DataObject) -> None:
        wanted = data.draw(st.sampled_from(configs_of(row)))
        sizes = Sizes(lambda low, high: data.draw(st.integers(low, high)), group_size(wanted))
        examples = list(examples_of(row.pattern, sizes, in_front=row.sharing is Sharing.FOLLOWS_INPUT))
        if examples:
            check_limits(bench.trial(row, data.draw(st.sampled_from(examples)), wanted), reached)

    with_drawn_shapes()
    both = sum(sides == {True, False} for sides in reached.values())
    note("limits", f"{both} of {len(reached)}")
    check_can_break(row, bench, reached)


def test_the_form_that_it_wants_computes_the_same(row: SupportRow, bench: Bench) -> None:
    """The annotated model, with what is claimed rewritten and nothing quantized yet, returns what it did."""
    for trial in bench.models(row):
        before = trial.run(trial.model)
        found = sqnr(before, trial.run(trial.annotate()))
        assert found >= _SAME[str(before.dtype)], f"the rewrite of {row.pattern.name} leaves {found:.0f} dB"


def test_annotation_is_deterministic(row: SupportRow, bench: Bench) -> None:
    """Two quantizers that are asked for the same annotate two copies of a model alike."""
    for trial in bench.models(row):
        assert decisions(trial.annotate()) == decisions(trial.annotate())


def test_annotation_is_idempotent(row: SupportRow, bench: Bench) -> None:
    """Annotating an annotated model changes nothing."""
    for trial in bench.models(row):
        model = trial.annotate()
        before = decisions(model)
        trial.quantizer().annotate(model)
        assert decisions(model) == before


def test_annotation_is_independent_of_names(row: SupportRow, bench: Bench) -> None:
    """The names of nodes do not decide anything."""
    for trial in bench.models(row):
        other = annotated(renamed(trial.model), trial.composed(trial.quantizer()))
        assert decisions(other) == decisions(trial.annotate())
