"""Whole models, lowered and run, beside what ExecuTorch's own quantizer and torchao make of them.

Each is tiny, with random weights. For both sides the same things are counted, in the same way, from the
programs: operators that delegates run as integers, and islands of float. Ours has never more of the latter,
and fewer of the former only where it says of operators that they are not profitable.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import attrs
import pytest
import torch

import torchquilt as tq
from plugins.oracle import Model, oracle_quantizer, quantized_by_oracle
from small_models import SMALL_MODELS, Decoder
from strategies import export, sqnr
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

MODELS = {subject.name: subject for subject in SMALL_MODELS}
MODELS["transformer, static"] = attrs.evolve(MODELS["transformer"], is_dynamic=False)
WITH_TABLES = frozenset({"transformer", "transformer, static", "decoder"})

#: Where ours has fewer islands of float, and of what the others have them.
FEWER_ISLANDS = {
    "lstm": "parts of a chunk are slices, and cheap operators between float ones stay with them",
    "transformer, static": "tables are looked up in integers",
}
#: Where both have as many, and the operators that ours has them for: none of them runs as integers.
AS_MANY_ISLANDS = {
    "mobile_net": frozenset[str](),
    "res_net": frozenset[str](),
    # What lies between dynamic linears, which return float, is float. Tables are part of such an island in
    # theirs; in ours they are not, which makes it smaller.
    "transformer": frozenset({"layer_norm", "scaled_dot_product_attention", "gelu"}),
    "decoder": frozenset({"layer_norm", "softmax", "silu"}),
    "u_net": frozenset({"upsample_bilinear2d"}),
}


@attrs.frozen(eq=False)
class Pair:
    """A model as a program, made by us and by ExecuTorch's quantizer with torchao."""

    model: Model
    ours: tq.LoweredProgram
    theirs: tq.LoweredProgram


@cache
def pair(name: str) -> Pair:
    """Both sides, with the same numbers and calibrated with the same inputs."""
    subject = MODELS[name]
    model = Model(subject.module(), subject.batch(0))
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=subject.is_dynamic)
    parts = [ExecuTorchEmbeddingQuantizer()] if name in WITH_TABLES else []
    quantizer = tq.ComposableQuantizer([*parts, XNNPACKQuantizer().set_global(config)])
    prepared = tq.prepare_pt2e(
        export(model.module, *model.inputs), quantizer, activation_observer="minmax", strict=False
    )
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [model.inputs]))
    ours = tq.lower(quantized, model.inputs, verify=True)
    fresh = Model(subject.module(), model.inputs)
    other = quantized_by_oracle(fresh, oracle_quantizer(is_dynamic=subject.is_dynamic))
    theirs = tq.lower(other, model.inputs, backends=["xnnpack"])
    return Pair(model, ours, theirs)


each_model = pytest.mark.parametrize("name", MODELS)


@each_model
def test_a_model_is_composed_lowered_run_and_verified(name: str) -> None:
    """It computes on the runtime what it computes as a quantized model: 40 dB, or one quantization step."""
    program = pair(name).ours
    assert program.verification
    assert ("executorch_embedding" in program.backends) == (name in WITH_TABLES)


@each_model
def test_what_was_quantized_runs_as_integers(name: str) -> None:
    """No operator that somebody annotated computes in float, and no conversion is left outside."""
    program = pair(name).ours
    assert program.ledger is not None
    quantized = {row.node: row.lowered for row in program.ledger if row.is_quantized}
    fallen = {
        node: status
        for node, status in quantized.items()
        if status is None or status.code in ("fell_back_to_float", "delegated_as_float")
    }
    assert quantized
    assert fallen == {}
    assert program.leftovers == ()


@each_model
def test_it_is_never_worse_than_the_other_flow(name: str, record_property: Any) -> None:
    """At most as many islands of float, and as many operators as integers but for what is not profitable."""
    found = pair(name)
    counts = {}
    for side, program in (("ours", found.ours), ("theirs", found.theirs)):
        counts[side] = len(program.integer_operations), len(program.float_islands)
        text = f"{counts[side][0]} delegated as integers, {counts[side][1]} islands of float"
        record_property(f"{name}, {side}", f"{text}, {program.size:,} bytes")
        print(f"{name}, {side}: {text}, {program.size:,} bytes")  # noqa: T201  (shown by -rP)
    assert found.ours.ledger is not None
    cheap = sum(row.code == "not_profitable" for row in found.ours.ledger)
    assert counts["ours"][0] + cheap >= counts["theirs"][0]
    assert counts["ours"][1] <= counts["theirs"][1]


def test_each_model_has_fewer_islands_or_is_said_why_not() -> None:
    """No model is in neither list, or in both."""
    assert sorted([*FEWER_ISLANDS, *AS_MANY_ISLANDS]) == sorted(MODELS)


@pytest.mark.parametrize("name", FEWER_ISLANDS)
def test_it_leaves_fewer_islands_of_float(name: str) -> None:
    """Strictly fewer, where the table has what the other one has not."""
    found = pair(name)
    assert len(found.ours.float_islands) < len(found.theirs.float_islands)


@pytest.mark.parametrize("name", AS_MANY_ISLANDS)
def test_islands_that_both_leave_are_of_what_has_no_integer_kernel(name: str) -> None:
    """Each has an operator for which there is no row, of those that are named; else there would be none."""
    ledger, causes = pair(name).ours.ledger, set()
    assert ledger is not None
    for island in pair(name).ours.float_islands:
        rows = [row for row in ledger if row.node in island and row.code == "unsupported_op"]
        assert rows, f"{island} could be quantized"
        causes |= {row.op.split(".")[1] for row in rows}
    assert causes >= {*AS_MANY_ISLANDS[name]}
    assert bool(causes) == bool(AS_MANY_ISLANDS[name])


@pytest.mark.parametrize("name", sorted({*WITH_TABLES, "lstm"}))
def test_the_runtime_itself_has_less_to_do(name: str) -> None:
    """Fewer operators compute in float outside of the delegate: lookups and parts of tensors do not."""
    outside = [
        [one for one in program.operations if not one.delegate and one.arithmetic == "float"]
        for program in (pair(name).ours, pair(name).theirs)
    ]
    assert len(outside[0]) < len(outside[1])


@each_model
def test_the_other_program_runs_too(name: str) -> None:
    """The other program works: it computes about what the float model does."""
    found = pair(name)
    expected = found.model.module.eval()(*found.model.inputs)
    assert sqnr(expected, found.theirs.run(*found.model.inputs)) > 10


def test_a_decoder_goes_on_with_its_cache() -> None:
    """Token by token the program returns what the quantized model does, each with a state of its own."""
    model, program = pair("decoder").model, pair("decoder").ours
    fresh = Decoder()
    fresh.load_state_dict(model.module.state_dict())
    fresh.keys.zero_()
    fresh.values.zero_()
    for position, token in enumerate([3, 1, 4, 1, 5]):
        inputs = (torch.tensor([[token]]), torch.tensor([position]))
        with torch.no_grad():
            expected = fresh(*inputs)
        assert sqnr(expected, program.run(*inputs)) > 20
