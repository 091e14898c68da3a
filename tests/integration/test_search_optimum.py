"""Search against brute force: every assignment of every option, on models of three modules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

import torchquilt as tq
from strategies import export, normal
from torchquilt.accuracy.candidates import find_candidates
from torchquilt.accuracy.variants import Variants
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

_BEST = 200.0


def static() -> XNNPACKQuantizer:
    """Everything static, per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))


def noise_metric(exported: ExportedProgram, batches: list[torch.Tensor]) -> Callable[[Any], float]:
    """Signal to noise of the outputs in dB, 200 where there is no noise."""

    def outputs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(batch).flatten() for batch in batches])

    reference = outputs(exported.module())

    def evaluate(model: Any) -> float:
        noise = float((outputs(model) - reference).norm() / reference.norm())
        return min(_BEST, -20 * math.log10(noise)) if noise else _BEST

    return evaluate


@attrs.frozen(eq=False)
class Case:
    """A model, its data, its metric, and all assignments with (float multiply-adds, bytes, metric)."""

    exported: ExportedProgram
    batches: list[torch.Tensor]
    evaluate: Callable[[Any], float]
    given: float
    assignments: list[tuple[int, int, float]]

    def search(self, **limits: Any) -> tq.SearchResult:
        """Search with these limits."""
        return tq.search(self.exported, static(), self.batches, self.evaluate, progress=False, **limits)


def _case(seed: int) -> Case:
    """One of the layers has a channel that is sixty times as large; half of the models read heavy tails."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 8))
    with torch.no_grad():
        model[[0, 2, 4][seed % 3]].weight[0] *= 60
    batches = [
        normal(16, 16, seed=one) * (normal(16, 16, seed=one + 50).exp() if seed % 2 else 1)
        for one in range(4)
    ]
    exported = export(model, batches[0])
    evaluate = noise_metric(exported, batches)
    variants = Variants(exported, static(), batches, "histogram")
    space = find_candidates(variants, batches, 2, fewer_bits=True)
    options = [[(unit, one.choice) for one in of_unit] for unit, of_unit in space.options.items()]
    found = []
    for chosen in itertools.product(*options):
        decided = variants.decided(dict(chosen))
        size = decided.size()
        metric = evaluate(variants.converted(variants.prepared(decided)))
        found.append((size.macs_float, size.bytes, metric))
    given = evaluate(variants.converted(variants.prepared(variants.decided({}))))
    return Case(exported, batches, evaluate, given, found)


@pytest.fixture(scope="module")
def cases() -> Mapping[int, Case]:
    """Six models."""
    return {seed: _case(seed) for seed in range(6)}


def test_the_fewest_multiply_adds_in_float_are_found(cases: Mapping[int, Case]) -> None:
    """In 17 of 18 searches it is the optimum; in the other there are 1.375 times as many.

    There two modules are in float where one with more multiply-adds would do: moves are taken back, and not
    exchanged for others.
    """
    ratios = []
    for case in cases.values():
        for gain in (3, 8, 15):
            drop = _BEST - (case.given + gain)
            found = case.search(max_drop=drop)
            assert found.is_met
            assert found.is_complete
            assert found.float_metric - found.best.metric <= drop
            least = min(macs for macs, _, metric in case.assignments if _BEST - metric <= drop)
            ratios.append((found.best.macs_float + 1) / (least + 1))
    assert min(ratios) >= 1
    assert sum(ratio == 1 for ratio in ratios) >= 17
    assert max(ratios) < 1.5


def test_the_best_metric_within_a_limit_of_multiply_adds_is_found(cases: Mapping[int, Case]) -> None:
    """In each of six models, where at most 512 multiply-adds are in float."""
    for case in cases.values():
        found = case.search(max_macs_float=512)
        assert found.is_met
        assert found.best.macs_float <= 512
        best = max(metric for macs, _, metric in case.assignments if macs <= 512)
        assert found.best.metric == best


def test_the_best_metric_within_a_limit_of_bytes_is_near(cases: Mapping[int, Case]) -> None:
    """It fits, and is at most 3 dB below the best of all that fits."""
    gaps = []
    for case in cases.values():
        sizes = sorted({size for _, size, _ in case.assignments})
        limit = sizes[len(sizes) // 3]
        found = case.search(max_bytes=limit)
        assert found.is_met
        assert found.best.bytes <= limit
        gaps.append(max(metric for _, size, metric in case.assignments if size <= limit) - found.best.metric)
    assert min(gaps) >= 0
    assert max(gaps) < 3, gaps


def test_impossible_limits_are_said(cases: Mapping[int, Case]) -> None:
    """No variant is so small: the result says so, and has the best metric that there was."""
    found = cases[0].search(max_bytes=10)
    assert not found.is_met
    assert "no variant is within all limits" in str(found)
    found = cases[0].search(max_drop=1e-3, max_macs_float=0)
    assert not found.is_met
    assert found.best.macs_float == 0


def test_the_frontier_is_of_what_nothing_covers(cases: Mapping[int, Case]) -> None:
    """No variant of it is as good as another in all and worse in something."""
    frontier = cases[5].search(max_drop=_BEST - (cases[5].given + 15)).frontier
    assert len(frontier) > 1
    for one, other in itertools.permutations(frontier, 2):
        assert not one.is_covered_by(other, minimize=False)
        assert (one.metric, one.bytes, one.macs_float) != (other.metric, other.bytes, other.macs_float)
