"""Split ranges: a class token that is tiny beside its patches, and other concatenations of unequal parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from planted import VisionTransformer, converted, noise, seeded, static
from strategies import Fn, export, normal, outputs_of
from torchquilt.graph.invariants import checking_invariants

IMAGES = [(normal(2, 3, 32, 32, seed=seed),) for seed in range(3)]


@pytest.mark.parametrize(
    "options",
    [{}, {"has_positions": False}, {"blocks": 4, "strength": 0.2, "has_positions": False}],
    ids=["with positions", "without", "four weak blocks"],
)
def test_a_small_class_token_is_recovered(options: dict[str, Any]) -> None:
    """The scores from the class token gain 12 dB and more, and the float model computes the same bits."""
    model = VisionTransformer(**options)
    exported = export(model, *IMAGES[0])
    with checking_invariants():
        found = tq.recovery.split_ranges(exported, IMAGES)
    before, after = (noise(model, converted(each, IMAGES), IMAGES) for each in (exported, found))
    assert before < 14
    assert after > before + 12
    with torch.no_grad():
        assert torch.equal(found(*IMAGES[0]), exported.module()(*IMAGES[0]))
    assert tq.recovery.steps_of(found)[0].applied[0] == "cat"


def test_the_concatenation_is_the_reason() -> None:
    """All linears and convolutions in float leave the loss, and the concatenation alone in float takes it."""
    model = VisionTransformer()
    exported = export(model, *IMAGES[0])

    def without(*parts: str) -> float:
        quantizer = static().set_filter_function(lambda node: not node.name.startswith(parts))
        prepared = tq.prepare_pt2e(exported, quantizer, strict=False)
        return noise(model, tq.convert_pt2e(tq.calibrate(prepared, IMAGES)), IMAGES)

    assert without("linear") < 14
    assert without("cat") > 24


def test_the_ledger_says_why() -> None:
    """The concatenation has the code of the pass, and its text names the node."""
    found = tq.recovery.split_ranges(export(VisionTransformer(), *IMAGES[0]), IMAGES)
    rows = {row.node: row for row in tq.explain(found, static()).left_in_float}
    assert rows["cat"].code == "kept_in_float"
    assert rows["cat"].reasons[0].text == "a part of cat is lost in the range of the others"


def test_equal_parts_are_left_alone() -> None:
    """A class token of the size of the patches keeps its steps."""
    found = tq.recovery.split_ranges(export(VisionTransformer(class_token=1.0), *IMAGES[0]), IMAGES)
    (step,) = tq.recovery.steps_of(found)
    assert step.applied == ()
    assert step.left == (("cat", "each part keeps enough steps of the common range"),)


def test_a_concatenation_that_an_operator_with_a_weight_reads_is_left_alone() -> None:
    """It has one range for all that it reads, so that nothing would be gained."""
    model = Fn(lambda m, x, y: m.a(torch.cat([x, y])), a=nn.Linear(4, 4))
    batch = (normal(3, 4), normal(3, 4) / 1000)
    (step,) = tq.recovery.steps_of(tq.recovery.split_ranges(export(model, *batch), [batch]))
    assert step.applied == ()
    assert step.left == (("cat", "linear reads it, and has one range for all that it reads"),)


def test_a_part_of_zeros_is_not_lost() -> None:
    """Zero is an integer of each range."""
    model = Fn(lambda m, x: torch.tanh(torch.cat([x, torch.zeros_like(x)])))
    (step,) = tq.recovery.steps_of(tq.recovery.split_ranges(export(model, normal(3, 4)), [(normal(3, 4),)]))
    assert step.applied == ()


def test_a_stack_has_parts_as_well() -> None:
    """Each tensor of a stack is one part, and a size that is free stays so."""
    model = Fn(lambda m, x, y: torch.tanh(torch.stack([m.a(x), m.a(y)], 1)), a=nn.Linear(4, 4, bias=False))
    batch = (normal(3, 4), normal(3, 4) / 1000)
    free = (({0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO}),)  # of *args
    found = tq.recovery.split_ranges(export(seeded(model), *batch, dynamic_shapes=free), [batch])
    assert tq.recovery.steps_of(found)[0].applied == ("stack",)
    assert found(normal(5, 4), normal(5, 4)).shape == (5, 2, 4)


def test_a_quantizer_that_annotates_by_itself_is_refused_there() -> None:
    """The error names the quantizer, the node and the reason."""
    found = tq.recovery.split_ranges(export(VisionTransformer(), *IMAGES[0]), IMAGES)
    with pytest.raises(tq.CompositionError) as caught:
        tq.prepare_pt2e(found, outputs_of("cat", name="mine"))
    assert "mine annotated cat, which a recovery pass keeps in float" in caught.value.problem
    assert "lost in the range of the others" in str(caught.value.expected)
