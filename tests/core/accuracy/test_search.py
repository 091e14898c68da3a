"""Decisions of a search: a quantizer with other rules for a module, candidates, and moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import torchquilt as tq
from strategies import INT8, export, normal, outputs_of
from torchquilt.accuracy.candidates import Option, Space, find_candidates
from torchquilt.accuracy.judging import Limits
from torchquilt.accuracy.moves import Moves
from torchquilt.accuracy.units import FLOAT, GIVEN, Choice, Composition
from torchquilt.accuracy.variants import Size, Variants
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.quantizers.composable import leaves_of
from torchquilt.quantizers.pattern_quantizer import PatternQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

X = normal(8, 8)
STATIC = get_symmetric_quantization_config(is_per_channel=True)
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)


def static() -> XNNPACKQuantizer:
    """Everything static, per channel."""
    return XNNPACKQuantizer().set_global(STATIC)


class Inner(nn.Module):
    """Operators of several kinds in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A layer, an activation and a residual."""
        return torch.relu(self.fc(x)) + x


class Outer(nn.Module):
    """Operators around modules that have operators, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Inner(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The inner module, and a residual."""
        return self.head(self.inner(x) + x) * 2


RULES: dict[str, Callable[[], object]] = {
    "everywhere": static,
    "names": lambda: static().set_module_name("0.inner", DYNAMIC).set_module_name("1.head", None),
    "patterns": lambda: static().set_module_name("*.head", DYNAMIC),
    "operators": lambda: static().set_operator_type(torch.ops.aten.relu.default, None),
    "two operators": lambda: (
        static()
        .set_operator_type(torch.ops.aten.linear.default, DYNAMIC)
        .set_operator_type(torch.ops.aten.mul.Tensor, None)
    ),
    "classes": lambda: static().set_module_type(Inner, DYNAMIC).set_module_type(nn.Linear, None),
    "a filter": lambda: static().set_filter_function(lambda node: "add" not in str(node.target)),
    "two of a backend": lambda: tq.ComposableQuantizer(
        [XNNPACKQuantizer().set_module_type(nn.Linear, DYNAMIC), static()]
    ),
}


@pytest.fixture(scope="module")
def nested() -> ExportedProgram:
    """Modules in modules."""
    torch.manual_seed(0)
    return export(nn.Sequential(Outer(), Outer()), X)


def asked(quantizer: PatternQuantizer, node: Any) -> object:
    """Config that a quantizer asks for at a node; None for float."""
    rule = quantizer.intent.rule_for(node)
    return rule.config if rule is not None and quantizer.intent.passes_filter(node) else None


@pytest.mark.parametrize("rules", RULES)
def test_a_choice_is_about_its_module_alone(nested: ExportedProgram, rules: str) -> None:
    """At every other operator, within it or around it, the user's rules decide as before."""
    model = nested.module()
    composition = Composition(RULES[rules](), model)
    searchable = composition.searchable()
    nodes = [node for node in nodes_of(model) if node.op == "call_function"]
    for unit in {module_path(node) for node in nodes}:
        offered = [one for one in composition.choices() if unit in searchable[one.leaf or 0]]
        for choice in (FLOAT, *offered[:2]):
            made = leaves_of(composition.with_choices({unit: choice}))
            for number, (before, after) in enumerate(zip(composition.leaves, made, strict=True)):
                assert isinstance(before, PatternQuantizer)
                assert isinstance(after, PatternQuantizer)
                for node in nodes:
                    if module_path(node) != unit:
                        assert asked(after, node) == asked(before, node), (unit, choice, node)
                    elif choice.leaf is None or number < choice.leaf:
                        assert asked(after, node) is None, (unit, choice, node)


def test_what_a_rule_leaves_in_float_is_not_offered(nested: ExportedProgram) -> None:
    """Nor a module in which a rule leaves one kind of operator in float."""
    quantizer = static().set_module_name("0.head", None)
    quantizer.set_operator_type(torch.ops.aten.relu.default, None)
    (offered,) = Composition(quantizer, nested.module()).searchable()
    assert "1.head" in offered
    assert not {"0.head", "0.inner", "1.inner"} & set(offered)


def test_choices_of_two_quantizers_of_one_backend_have_names_of_their_own(nested: ExportedProgram) -> None:
    """A name stands for a variant in the file of a search."""
    composed = tq.ComposableQuantizer([XNNPACKQuantizer().set_module_type(nn.Linear, DYNAMIC), static()])
    names = [choice.name for choice in Composition(composed, nested.module()).choices()]
    assert len(set(names)) == len(names)
    assert "xnnpack:static_int8" in [one.name for one in Composition(static(), nested.module()).choices()]


class Fused(tq.Quantizer):
    """Annotates linear and relu as one, each in a module of its own."""

    def annotate(self, model: Any) -> Any:
        """Quantize the input of linear and the output of relu."""
        for node in model.graph.nodes:
            if "relu" in str(node.target):
                (linear,) = node.all_input_nodes
                read = {linear.args[0]: INT8}
                tq.annotate_node(linear, tq.QuantizationAnnotation(read, quantizer="fused", pattern="fused"))
                tq.annotate_node(
                    node, tq.QuantizationAnnotation({}, INT8, quantizer="fused", pattern="fused")
                )
        return model


def test_a_match_of_a_quantizer_without_a_table_is_left_out_as_a_whole() -> None:
    """Also where its operators come from several modules."""
    exported = export(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()), X)
    variants = Variants(exported, Fused(), [X], "minmax")
    assert list(variants.decided({}).outcome()) == ["0", "2"]
    ledger = variants.decided({"0": FLOAT}).ledger
    assert [row.module for row in ledger.quantized] == ["2", "3"]


def test_each_candidate_quantizes_something(nested: ExportedProgram) -> None:
    """In the ledger, and otherwise than each other candidate of its module."""
    variants = Variants(nested, static(), [X], "minmax")
    space = find_candidates(variants, variants.batches, 1, fewer_bits=True)
    assert "0.head" in space.options
    for unit in ("0.head", "1.inner.fc"):
        outcomes = []
        for option in space.options[unit]:
            if option.choice != FLOAT:
                outcome = variants.decided({unit: option.choice}).outcome()
                assert outcome[unit], option
                outcomes.append(outcome[unit])
        assert len(set(outcomes)) == len(outcomes) > 1


# ----------------------------------------------------------------------------------------------------------
# Moves
# ----------------------------------------------------------------------------------------------------------

WIDE, NARROW = Choice("wide", 0, STATIC), Choice("narrow", 0, DYNAMIC)
NO_LIMITS = Limits(None, None, None, None)


def space_of(**options: tuple[Option, ...]) -> Space:
    """Units with these options, and nothing else."""
    return Space(options, Size(0, 0))


def test_a_later_move_is_no_step_back() -> None:
    """Moves to more noise, after one that costs little more, would undo it."""
    space = space_of(
        a=(Option(GIVEN, 1.0, 0, 10), Option(FLOAT, 0.0, 100, 40), Option(WIDE, 0.2, 90, 20)),
        b=(Option(GIVEN, 0.5, 0, 10), Option(WIDE, 0.1, 0, 20), Option(FLOAT, 0.0, 500, 40)),
    )
    moves = Moves.of(space, NO_LIMITS)
    noises = [
        sum(space.option(unit, moves.after(number)).noise for unit in space.options)
        for number in range(len(moves) + 1)
    ]
    assert noises == sorted(noises, reverse=True)
    assert noises[-1] == 0


def test_moves_keep_within_the_limits() -> None:
    """However many are made."""
    space = space_of(
        a=(Option(GIVEN, 1.0, 0, 10), Option(FLOAT, 0.0, 100, 40)),
        b=(Option(GIVEN, 0.5, 0, 10), Option(FLOAT, 0.0, 60, 40)),
        c=(Option(GIVEN, 0.1, 0, 10), Option(FLOAT, 0.0, 50, 40)),
    )
    limits = Limits(None, 120, None, None)
    moves = Moves.of(space, limits)
    sizes = [space.size(moves.after(number)).macs_float for number in range(len(moves) + 1)]
    assert max(sizes) <= 120
    assert sizes[-1] > 0


def test_a_beginning_beyond_the_limits_is_made_to_fit() -> None:
    """By the changes that cost least accuracy for what they save."""
    space = space_of(
        a=(Option(GIVEN, 0.0, 100, 40), Option(WIDE, 0.5, 0, 10)),
        b=(Option(GIVEN, 0.0, 100, 40), Option(WIDE, 0.1, 0, 10)),
    )
    assert Moves.of(space, Limits(None, 100, None, None)).start == {"b": WIDE}
    assert Moves.of(space, Limits(50, None, None, None)).start == {"b": WIDE}
    assert set(Moves.of(space, Limits(20, 0, None, None)).start) == {"a", "b"}


# ----------------------------------------------------------------------------------------------------------
# What is refused
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_evaluations": 0}, "max_evaluations"),
        ({"max_latency_ms": 1.0}, "target"),
        ({"max_drop": "-1%"}, "no drop"),
        ({"recovery": ("magic",)}, "no recovery pass"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(
    nested: ExportedProgram, options: dict[str, Any], match: str
) -> None:
    """With an error of ours."""
    with pytest.raises(tq.AccuracyError, match=match):
        tq.search(nested, static(), [X], lambda _: 1.0, progress=False, **options)


def test_a_quantizer_that_is_good_enough_is_kept(nested: ExportedProgram, tmp_path: Path) -> None:
    """One evaluation beside that of the float model; what a search writes is JSON."""
    quantizer = static()
    found = tq.search(
        nested, quantizer, [X], lambda _: 1.0, max_drop=0, state=tmp_path / "state", progress=False
    )
    assert found.quantizer is quantizer
    assert (found.evaluations, found.is_met, found.is_complete) == (1, True, True)
    assert set(json.loads((tmp_path / "state").read_text())["values"]) == {"float", "given"}


def test_a_quantizer_that_quantizes_nothing_goes_as_far_as_the_limits_ask(nested: ExportedProgram) -> None:
    """It is as good as float, so without a limit it is kept; with one it is made to fit."""
    empty = XNNPACKQuantizer()
    kept = tq.search(nested, empty, [X], lambda _: 1.0, max_drop=0, progress=False)
    assert kept.integer_share == 0
    found = tq.search(nested, empty, [X], lambda _: 1.0, max_drop=0, max_macs_float=0, progress=False)
    assert found.is_met
    assert found.integer_share == 1


def test_a_users_own_quantizer_can_be_searched(nested: ExportedProgram) -> None:
    """Without a table its modules are either as it decides, or in float."""
    quantizer = outputs_of("linear")
    with torch.no_grad():
        reference = nested.module()(X)

    def evaluate(model: Any) -> float:
        with torch.no_grad():
            return -float((model(X) - reference).square().mean())

    found = tq.search(nested, quantizer, [X], evaluate, max_drop=1e-9, progress=False)
    assert found.is_met
    assert set(found.choices.values()) == {"float"}
