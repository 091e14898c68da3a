"""Estimates of noise, held against the noise that each module alone adds to the outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

import torchquilt as tq
from small_models import SMALL_MODELS
from strategies import Fn, export, normal, outputs_of
from torchquilt.accuracy.estimates import estimated_noise
from torchquilt.accuracy.units import FLOAT
from torchquilt.accuracy.variants import Variants
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config(is_per_channel=True)
X = [normal(64, 16, seed=seed) for seed in range(4)]


def static() -> XNNPACKQuantizer:
    """Everything static, per channel."""
    return XNNPACKQuantizer().set_global(STATIC)


def estimated(exported: ExportedProgram, batches: list[Any]) -> dict[str, float]:
    """Group → estimated noise."""
    found = tq.sensitivity(exported, static(), batches, progress=False)
    return {group.name: group.noise for group in found.groups}


def measured(exported: ExportedProgram, batches: list[Any]) -> dict[str, float]:
    """Group → noise of the outputs of a model in which all other groups are in float."""
    variants = Variants(exported, static(), batches, "histogram")
    units = list(variants.decided({}).outcome())
    found = {}
    for unit in units:
        others = {other: FLOAT for other in units if other != unit}
        alone = variants.converted(variants.prepared(variants.decided(others)))
        noise = 0.0
        for batch in batches:
            args = batch if isinstance(batch, tuple) else (batch,)
            with torch.no_grad():
                pairs = zip(
                    pytree.tree_leaves(exported.module()(*args)),
                    pytree.tree_leaves(alone(*args)),
                    strict=True,
                )
                noise += sum(float((a - b).square().sum() / a.square().sum()) for a, b in pairs)
        found[unit or "(root)"] = noise / len(batches)
    return found


def distances(exported: ExportedProgram, batches: list[Any]) -> dict[str, float]:
    """Group → dB between what is estimated and what is measured."""
    guess, truth = estimated(exported, batches), measured(exported, batches)
    return {name: 10 * math.log10(guess[name] / noise) for name, noise in truth.items() if noise}


def model(seed: int = 0) -> nn.Module:
    """Three linears with what stands between them in many models."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 16)
    )


def test_it_is_near_what_each_module_adds() -> None:
    """Within 3 dB, for every layer of a small model."""
    found = distances(export(model(), X[0]), X)
    assert set(found) == {"0", "2", "5"}
    assert max(map(abs, found.values())) < 3, found


def test_what_is_only_moved_is_rounded_once() -> None:
    """Views of a tensor have its parameters: rounding them again adds nothing, however many there are."""

    def views(module: Any, x: torch.Tensor) -> torch.Tensor:
        y = module.a(x)
        for _ in range(6):
            y = y.reshape(4, 16, 16).transpose(0, 1).reshape(64, 16)
        return module.b(y)

    torch.manual_seed(0)
    found = distances(export(Fn(views, a=nn.Linear(16, 16), b=nn.Linear(16, 16)), X[0]), X)
    assert set(found) >= {"b"}
    assert max(map(abs, found.values())) < 3, found


@pytest.mark.long
@pytest.mark.parametrize("name", ["transformer", "lstm", "u_net"])
def test_it_is_near_for_whole_models(name: str) -> None:
    """Within 6 dB for each module alone, whose inputs are rounded, too; few outputs leave both uncertain."""
    (subject,) = (one for one in SMALL_MODELS if one.name == name)
    batches = [subject.batch(seed) for seed in range(8)]
    exported = torch.export.export(subject.module(), batches[0])
    truth = measured(exported, batches)
    variants = Variants(exported, static(), batches, "histogram")
    units = list(variants.decided({}).outcome())
    far = {}
    for unit in units:
        alone = variants.decided({other: FLOAT for other in units if other != unit})
        noise = estimated_noise(variants.prepared(alone), alone, batches, len(batches)).of_units
        if truth[unit or "(root)"] > 1e-8:
            far[unit] = 10 * math.log10(sum(noise.values()) / truth[unit or "(root)"])
    assert len(far) >= 3
    assert max(map(abs, far.values())) < 6, far


def test_each_output_counts_by_its_own_signal() -> None:
    """An output that is a thousand times larger does not hide the other."""
    torch.manual_seed(0)
    parts = {"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)}
    found = distances(export(Fn(lambda m, x: (m.a(x), 1000 * m.b(x)), **parts), X[0]), X)
    assert set(found) == {"a", "b"}
    assert max(map(abs, found.values())) < 6, found


def test_integers_go_in_and_come_out() -> None:
    """Of them there is no gradient, and the float output beside them is what counts."""
    torch.manual_seed(0)
    parts = {"words": nn.Embedding(20, 16), "a": nn.Linear(16, 16)}

    def scores(m: Any, tokens: torch.Tensor) -> Any:
        y = m.a(m.words(tokens))
        return y.argmax(-1), y

    found = tq.sensitivity(
        export(Fn(scores, **parts), torch.arange(20)), static(), [torch.arange(20)], progress=False
    )
    assert found.is_weighted
    assert 0 < found["a"].noise < 0.1


def test_without_any_gradient_each_tensor_counts_by_itself() -> None:
    """Only argmax comes out, and it says so; the order is still that of the errors."""
    torch.manual_seed(0)
    found = tq.sensitivity(
        export(Fn(lambda m, x: m.a(x).argmax(-1), a=nn.Linear(16, 16)), X[0]), static(), X, progress=False
    )
    assert not found.is_weighted
    assert 0 < found["a"].noise < 0.1


def test_with_control_flow_each_tensor_counts_by_itself() -> None:
    """A subgraph cannot be looked into while it is differentiated."""
    torch.manual_seed(0)

    def branch(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x)
        return torch.cond(y.sum() > 0, lambda y: m.b(y) + 1, lambda y: m.b(y) - 1, (y,))

    parts = {"a": nn.Linear(16, 16), "b": nn.Linear(16, 16)}
    found = tq.sensitivity(export(Fn(branch, **parts), X[0]), static(), X, progress=False)
    assert not found.is_weighted
    assert found["a"].noise > 0


def test_a_cache_goes_on_from_batch_to_batch() -> None:
    """The next batch reads what one wrote, and is not differentiated through."""
    (subject,) = (one for one in SMALL_MODELS if one.name == "decoder")
    batches = [(torch.tensor([[seed]]), torch.tensor([seed])) for seed in range(6)]
    found = estimated(torch.export.export(subject.module(), batches[0]), batches)
    assert all(math.isfinite(noise) for noise in found.values())
    assert found["key"] > 0


def test_a_mask_of_minus_infinity_hides_no_error() -> None:
    """The other elements of its tensor count."""
    torch.manual_seed(0)
    mask = torch.zeros(16, 16).masked_fill(torch.ones(16, 16).triu(1).bool(), -math.inf)

    def attend(m: Any, x: torch.Tensor) -> torch.Tensor:
        y = m.a(x).reshape(4, 16, 16)
        return (y @ y.transpose(1, 2) + mask).softmax(-1) @ y

    noise = estimated(export(Fn(attend, a=nn.Linear(16, 16)), X[0]), X)
    assert all(math.isfinite(value) for value in noise.values())
    assert noise["a"] > 0


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_outputs_without_a_signal_are_no_error(value: float) -> None:
    """All outputs are zero, or none is a number: there is nothing to divide by."""
    torch.manual_seed(0)
    noise = estimated(export(Fn(lambda m, x: m.a(x) * value, a=nn.Linear(16, 16)), X[0]), X)
    assert all(math.isfinite(one) for one in noise.values())


def test_data_is_read_as_calibrate_reads_it() -> None:
    """No more batches than asked for, and one batch by itself is refused."""
    exported = export(Fn(lambda m, x: m.a(x), a=nn.Linear(16, 16)), X[0])
    read: list[int] = []

    def noted() -> Any:
        for number, x in enumerate(X):
            read.append(number)
            yield x

    limited = tq.sensitivity(exported, static(), X, data=noted(), limit=2, progress=False)
    assert read == [0, 1]
    assert limited["a"].noise > 0
    with pytest.raises(tq.AccuracyError, match="no batches"):
        tq.sensitivity(exported, static(), X[0], progress=False)


def test_half_precision_goes_through() -> None:
    """Squares are summed in float32."""
    torch.manual_seed(0)
    exported = export(nn.Sequential(nn.Linear(16, 16)).bfloat16(), X[0].bfloat16())
    batches = [x.bfloat16() for x in X]
    assert 0 < tq.sensitivity(exported, outputs_of("linear"), batches, progress=False)["0"].noise < 0.1
