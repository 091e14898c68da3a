"""Comparisons of models and data that are out of the ordinary."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from control_flow import LAYERS
from small_models import Decoder
from strategies import Fn, Nothing, export, normal
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_int4_weight_config, get_symmetric_quantization_config
from unharmed import unharmed

X = normal(2, 4, 6, 4)
IMAGE = normal(2, 4, 8, 8)
BOTH = [(X,), (-X,)]


def static(**asked: Any) -> XNNPACKQuantizer:
    """XNNPACK everywhere, int8 per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, **asked))


@attrs.frozen(eq=False)
class Pair:
    """An exported model and its quantized form."""

    exported: ExportedProgram
    found: GraphModule

    @classmethod
    def of(
        cls,
        model: nn.Module,
        batches: list[Any],
        quantizer: object = None,
        *,
        reference: bool = False,
        **options: Any,
    ) -> Pair:
        """Export, prepare, calibrate on the batches, convert."""
        exported = export(model, *batches[0], **options)
        quantizer = quantizer or static()
        prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
        tq.calibrate(prepared, [tuple(tensor.clone() for tensor in batch) for batch in batches])
        return cls(exported, tq.convert_pt2e(prepared, use_reference_representation=reference))

    def compare(self, batches: Any, **options: Any) -> tq.Comparison:
        """The comparison, after which both models are what they were."""
        with unharmed(self.exported, self.found):
            return tq.compare(self.exported, self.found, batches, progress=False, **options)


def linears(**more: Any) -> dict[str, nn.Module]:
    """Two linears for a function."""
    torch.manual_seed(0)
    return {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), **more}


def fits(comparison: tq.Comparison, pair: Pair) -> bool:
    """Whether every quantized operator is compared or named, and every float one computes what it did."""
    compared = {row.node: row for row in comparison.operators}
    named = {one.node for one in comparison.uncompared}
    ledger = tq.ledger_of(pair.found)
    lost = [row.node for row in ledger.quantized if row.node not in compared and row.node not in named]
    changed = [
        row.node
        for row in ledger.left_in_float
        if row.node in compared
        and not compared[row.node].tensors
        and compared[row.node].isolated.sqnr != math.inf
    ]
    unexplained = [
        row.node for row in comparison.operators if row.isolated.sqnr < math.inf and not row.reason
    ]
    assert (lost, changed, unexplained) == ([], [], [])
    return bool(comparison.operators) and all(one.reason for one in comparison.uncompared)


# --- Values -------------------------------------------------------------------------------------------------


def test_nan_in_one_layer_of_the_float_model_is_no_error() -> None:
    """A NaN that both models have is left out, and the operators behind it are compared."""

    def run(m: Fn, x: torch.Tensor) -> torch.Tensor:
        y = m.first(x)
        return m.second((y - 100).log().nan_to_num(0.5) + y)

    pair = Pair.of(Fn(run, **linears()), BOTH)
    comparison = pair.compare(BOTH)
    assert fits(comparison, pair)
    assert comparison["log"].isolated.sqnr == math.inf
    assert 25 < comparison.outputs[0].error.sqnr < 60


def test_nan_in_the_quantized_model_alone_is_the_worst_error() -> None:
    """It is first in the table, and says so."""
    pair = Pair.of(Fn(lambda m, x: m.second(m.first(x)).relu(), **linears()), BOTH)
    with torch.no_grad():
        scales = next(v for name, v in pair.found.named_buffers() if "second" in name and "scale" in name)
        scales[1] = math.nan
    worst = tq.compare(pair.exported, pair.found, BOTH, progress=False).worst
    assert worst is not None
    assert (worst.node, worst.isolated.sqnr) == ("linear_1", -math.inf)
    assert worst.reason == "it returns NaN or infinities where the float model does not"


def test_outputs_that_are_all_zero_have_no_error() -> None:
    """Neither do operators whose values are."""
    pair = Pair.of(Fn(lambda m, x: m.second(m.first(x) * 0.0).relu() * 0.0, **linears()), BOTH)
    comparison = pair.compare(BOTH)
    assert fits(comparison, pair)
    assert comparison.outputs[0].error == comparison["mul"].isolated
    assert (comparison["mul"].isolated.sqnr, comparison["mul"].isolated.cosine) == (math.inf, 1.0)


def test_outputs_of_any_kind_are_taken() -> None:
    """Those that are float tensors are compared, also where they are inputs or parameters."""

    def run(m: Fn, x: torch.Tensor) -> Any:
        return {"a": m.first(x), "b": [x.long(), 3, None, x], "c": x.argmax(), "d": m.first.weight}

    comparison = Pair.of(Fn(run, **linears()), BOTH).compare(BOTH)
    assert [output.error.sqnr == math.inf for output in comparison.outputs] == [False, True, True]
    assert comparison.outputs[0].name == "linear"


def test_a_model_of_integers_has_nothing_to_compare() -> None:
    """No rows, no outputs, and it prints."""
    batches = [(torch.arange(4),)]
    comparison = Pair.of(Fn(lambda m, x: (x + 1, x.argmax())), batches).compare(batches)
    assert (comparison.operators, comparison.outputs, comparison.worst) == ((), (), None)
    assert str(comparison) == ""
    assert tq.Comparison.from_json(comparison.to_json()) == comparison


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fill", [-math.inf, "lowest"])
def test_masks_of_attention_hide_no_error(dtype: torch.dtype, fill: Any) -> None:
    """The error of the scores is that of the scores that are not masked."""
    mask = torch.ones(6, 6).triu(1).bool()
    value = torch.finfo(dtype).min if fill == "lowest" else fill

    def run(m: Fn, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = (m.first(x) @ m.second(x).transpose(-1, -2)).masked_fill(mask, value)
        return scores.softmax(-1) @ x

    batches = [(X.to(dtype), mask), (-X.to(dtype), mask)]
    pair = Pair.of(Fn(run, **linears()).to(dtype), batches, static(is_dynamic=True))
    comparison = pair.compare(batches)
    assert fits(comparison, pair)
    error = comparison["masked_fill"].accumulated
    scores = comparison["matmul"].accumulated
    if scores.sqnr < math.inf:
        assert error.sqnr == pytest.approx(scores.sqnr, abs=6)
        assert error.max_error <= scores.max_error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_compared(dtype: torch.dtype) -> None:
    """Weights alone, which every backend has in half precision."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(dtype)
    batches = [(normal(3, 64, seed=seed).to(dtype),) for seed in range(2)]
    pair = Pair.of(model, batches, static(is_dynamic=True))
    comparison = pair.compare(batches)
    assert fits(comparison, pair)
    assert len(comparison.operators) == 3


# --- Graphs -------------------------------------------------------------------------------------------------


class Loop(nn.Module):
    """A linear in a while_loop, as often as the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        """Shape in, shape out."""
        return while_loop(lambda x: x.abs().max() > 0.5, lambda x: (torch.tanh(self.fc(x)) * 0.5,), (x,))[0]


class Nested(nn.Module):
    """A cond within a cond."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> Any:
        """Shape in, shape out."""

        def inner(x: torch.Tensor) -> Any:
            return torch.cond(x[0].sum() > 0, lambda x: self.a(x).relu(), lambda x: self.b(x) * 2.0, (x,))

        return torch.cond(x.sum() > 0, inner, lambda x: self.c(x) + 1, (x,))


def before_a_linear(*layers: str) -> Callable[[], nn.Module]:
    """Layers with control flow, and a linear."""
    return lambda: nn.Sequential(*(LAYERS[name](4) for name in layers), nn.Linear(4, 4))


CONTROL: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    **{
        name: ((lambda layer=layer: nn.Sequential(layer(4), nn.Linear(4, 4))), BOTH)
        for name, layer in LAYERS.items()
    },
    "while_loop": (Loop, BOTH),
    "nested": (Nested, [(X.abs(),), (-X.abs(),), (torch.cat([-X[:1].abs(), 3 * X[:1].abs()]),)]),
    "scan of no_grad": (before_a_linear("scan", "no_grad"), BOTH),
}


#: What others test in part.
_LONG = ("scan of no_grad", "no_grad", "cond")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in _LONG else []) for name in CONTROL],
)
def test_operators_in_subgraphs_are_compared_each_time_that_they_run(name: str) -> None:
    """By themselves they have the error of eight bits, not of steps that came before."""
    make, batches = CONTROL[name]
    torch.manual_seed(0)
    pair = Pair.of(make(), batches)
    comparison = pair.compare(batches)
    assert fits(comparison, pair)
    inside = [row for row in comparison.operators if "." in row.node]
    assert [row for row in inside if row.isolated.sqnr < math.inf]
    assert all(row.isolated.sqnr > 25 for row in inside)
    assert not any(row.diverged for row in inside)


def test_a_branch_that_only_the_quantized_model_takes_is_told() -> None:
    """The operators there have nothing to be compared with; those of the other branch have."""

    def run(m: Fn, x: torch.Tensor) -> Any:
        y = m.first(x)
        is_above = y.flatten()[0] > m.level
        return torch.cond(is_above, lambda y: m.second(y) + 1.0, lambda y: m.second(y) - 1.0, (y,))

    model = Fn(run, **linears(), level=torch.zeros(()))
    with torch.no_grad():
        model.level.copy_(model.first(X).flatten()[0])
    # Not in the very example, whose value is the level itself, but one way or the other with eight bits.
    near = [(X * (1 + step * 1e-4),) for step in range(-8, 9)]
    pair = Pair.of(model, [(X,), (-X,), *near])
    comparison = pair.compare(near)
    inside = [row for row in comparison.operators if "." in row.node]
    assert any(row.diverged for row in inside)
    assert all(row.isolated.sqnr > 20 for row in inside)


def test_operators_that_write_in_place_are_compared() -> None:
    """Into what an operator returned, and through views of it."""

    def run(m: Fn, x: torch.Tensor) -> torch.Tensor:
        y = m.first(x)
        y += x
        z = m.second(y).relu_()
        part = z[:, :2]
        part.mul_(3.0)
        z[..., 0] = 1.0
        return z + y

    pair = Pair.of(Fn(run, **linears()), BOTH)
    comparison = pair.compare(BOTH)
    assert fits(comparison, pair)
    assert {"add_", "relu_", "mul_"} <= {row.node for row in comparison.operators}


def test_memory_that_is_set_later_is_not_compared() -> None:
    """Readers of memory that is set by then have the values of the float model."""

    def run(m: Fn, x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(2, 4, 6, 8)
        y[..., :4] = m.first(x)
        y[..., 4:] = 0.5
        zeros = torch.zeros_like(x)
        zeros[:, 0] = y[:, 0, :, :4]
        return m.second(zeros) * torch.sigmoid(y)[..., :4] * (zeros + 1)

    pair = Pair.of(Fn(run, **linears()), BOTH)
    comparison = pair.compare(BOTH)
    assert fits(comparison, pair)
    assert {one.reason for one in comparison.uncompared} == {"its memory is not set"}
    assert comparison["sigmoid"].isolated.sqnr == math.inf
    assert comparison["sigmoid"].accumulated.sqnr < 60


def test_a_model_that_writes_into_its_inputs_leaves_the_data_alone() -> None:
    """Each run gets the inputs as they are."""
    batches = [(X.clone(),), (-X,)]
    pair = Pair.of(Fn(lambda m, x: m.second(m.first(x.mul_(2.0)).relu_()), **linears()), batches)
    comparison = pair.compare(batches)
    assert torch.equal(batches[0][0], X)
    assert comparison["mul_"].accumulated.sqnr == math.inf
    assert comparison.outputs[0].error.sqnr > 25


def test_buffers_begin_anew_with_each_batch() -> None:
    """Steps of a decoder with a cache: each batch gives what it gives alone."""
    torch.manual_seed(0)
    batches = [(torch.tensor([[token]]), torch.tensor([token])) for token in range(4)]
    pair = Pair.of(Decoder(), batches, static(is_dynamic=True))
    comparison = pair.compare(batches)
    assert fits(comparison, pair)
    alone = [pair.compare([batch])["linear_6"].accumulated for batch in batches]
    assert comparison["linear_6"].accumulated.max_error == max(one.max_error for one in alone)
    assert comparison == pair.compare(batches)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "folded": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()),
    "folded twice": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()
    ),
    "not folded": lambda: Fn(
        lambda m, x: m.norm(y := m.conv(x)) + y, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)
    ),
    "shared": lambda: Fn(
        lambda m, x: m.norm(m.b(m.norm(m.a(x)).relu())),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 1),
        norm=nn.BatchNorm2d(4),
    ),
    "before": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_folded_batch_norm_is_compared_with_what_was_folded(name: str) -> None:
    """Its statistics are far from 0 and 1, so that a convolution before it has other values."""
    torch.manual_seed(0)
    model = NORMS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(3)
            module.running_var.uniform_(4, 9)
    batches = [(IMAGE,), (-IMAGE,)]
    pair = Pair.of(model, batches)
    comparison = pair.compare(batches)
    assert all(row.isolated.sqnr > 25 for row in comparison.operators)
    assert not comparison.uncompared


def test_operators_that_a_backend_writes_in_another_form_are_compared() -> None:
    """As what the user wrote: by the name that the ledger has."""
    torch.manual_seed(0)
    layers = (nn.Hardswish(), nn.SiLU(), nn.LeakyReLU(), nn.Hardsigmoid())
    convolutions = [layer for one in layers for layer in (nn.Conv2d(4, 4, 1), one)]
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    batches = [(IMAGE,), (-IMAGE,)]
    pair = Pair.of(model, batches)
    comparison = pair.compare(batches)
    assert fits(comparison, pair)
    assert comparison.uncompared == ()


# --- Data ---------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A linear with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Shape in, shape out."""
        return torch.relu(self.fc(x)) * scale


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The model, for any number of rows."""
    rows = torch.export.Dim("rows", min=1, max=64)
    batch = (normal(6, 4), torch.tensor(2.0))
    return Pair.of(Model(), [batch], dynamic_shapes={"x": {0: rows}, "scale": None})


SCALE = torch.tensor(2.0)
ROWS = normal(12, 4, seed=3)


class Rows:
    """Rows that look like a dataset of the library ``datasets``."""

    column_names = ("x", "scale", "label")
    features = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in ROWS:
            yield {"x": row.tolist(), "scale": 2.0, "label": "text"}


def test_batches_of_different_sizes_count_by_their_values(pair: Pair) -> None:
    """However the rows are split: in one batch, in three, in rows, by name, by a generator, in a dataset."""
    whole = pair.compare([(ROWS, SCALE)])
    splits: list[Any] = [
        [(ROWS[:2], SCALE), (ROWS[2:7], SCALE), (ROWS[7:], SCALE)],
        [{"x": ROWS[:5], "scale": SCALE}, {"scale": SCALE, "x": ROWS[5:]}],
        ((row[None], SCALE) for row in ROWS),
        Rows(),
    ]
    for split in splits:
        found = pair.compare(split)
        for row in whole.operators:
            for kind in ("isolated", "accumulated"):
                one, other = getattr(found[row.node], kind), getattr(row, kind)
                assert one.sqnr == pytest.approx(other.sqnr, abs=1e-3)
                assert one.max_error == pytest.approx(other.max_error, rel=1e-3)


def test_no_more_batches_are_read_than_asked_for(pair: Pair) -> None:
    """One at a time, each once, and none beyond the limit."""
    read: list[int] = []

    def batches() -> Iterator[Any]:
        for number in range(10):
            read.append(number)
            yield ROWS[:3], SCALE

    assert pair.compare(batches(), limit=3).batches == 3
    assert read == [0, 1, 2]


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "no batch"),
        (iter(()), "no batch"),
        (ROWS, "no batches to go through"),
        ({"x": ROWS, "scale": SCALE}, "no batches to go through"),
        (None, "no batches to go through"),
        ([(ROWS,)], "Batch 0 (counted from 0) does not go through the float model"),
        (
            [(ROWS, SCALE), (ROWS[:, :3], SCALE)],
            "Batch 1 (counted from 0) does not go",
        ),
    ],
)
def test_what_cannot_be_compared_on_is_refused(pair: Pair, batches: Any, said: str) -> None:
    """An error of ours, with what to do."""
    with pytest.raises(tq.AccuracyError, match=said.replace("(", r"\(").replace(")", r"\)")) as caught:
        pair.compare(batches)
    assert caught.value.remedy


def test_models_in_the_wrong_stage_or_order_are_refused(pair: Pair) -> None:
    """Each says what it is."""
    prepared = tq.prepare_pt2e(pair.exported, static())
    wrong: list[tuple[Any, Any]] = [
        (pair.found, pair.exported),
        (pair.found, pair.found),
        (pair.exported, prepared),
        (prepared, pair.found),
        (Model(), pair.found),
        (pair.exported, Model()),
    ]
    for expected, found in wrong:
        with pytest.raises(tq.ModelError):
            tq.compare(expected, found, [(ROWS, SCALE)], progress=False)


# --- Models -------------------------------------------------------------------------------------------------


def test_a_model_in_which_nothing_is_quantized_has_no_error() -> None:
    """Not one bit, wherever one looks."""
    pair = Pair.of(Fn(lambda m, x: m.second(m.first(x).relu_()).softmax(-1), **linears()), BOTH, Nothing())
    comparison = pair.compare(BOTH)
    every = [figure.sqnr for row in comparison.operators for figure in (row.isolated, row.accumulated)]
    assert len(every) == 8
    assert {*every, *(output.error.sqnr for output in comparison.outputs)} == {math.inf}


def test_dropout_that_is_meant_drops_the_same_in_each_run() -> None:
    """A model that was exported in training mode."""
    torch.manual_seed(0)
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train(), (X,))
    prepared = tq.prepare_pt2e(exported, static(), strict=False)
    found = tq.convert_pt2e(tq.calibrate(prepared, BOTH))
    comparison = tq.compare(exported, found, BOTH, progress=False)
    assert comparison["dropout"].isolated.sqnr == math.inf
    assert comparison.outputs[0].error.sqnr > 25


def small_network() -> nn.Module:
    """Convolutions with a residual, and a classifier."""

    def run(m: Fn, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(m.conv(x))
        return m.head((torch.relu(m.again(y) + y)).mean((2, 3)))

    torch.manual_seed(0)
    return Fn(run, conv=nn.Conv2d(4, 8, 3), again=nn.Conv2d(8, 8, 3, padding=1), head=nn.Linear(8, 3))


IMAGES = [(IMAGE,), (-IMAGE,)]


def test_the_integer_reference_is_compared_where_it_dequantizes() -> None:
    """Floats that hold integers are not taken for values, and what is not compared says why."""
    plain = Pair.of(small_network(), IMAGES).compare(IMAGES)
    pair = Pair.of(small_network(), IMAGES, reference=True)
    found = pair.compare(IMAGES)
    assert found.outputs[0].error.sqnr == pytest.approx(plain.outputs[0].error.sqnr, abs=3)
    assert [row.node for row in found.operators] == ["linear"]
    assert found["linear"].accumulated == found.outputs[0].error
    assert found["linear"].reason == "it computes with integers"
    assert {one.node for one in found.uncompared} == {row.node for row in plain.operators} - {"linear"}
    reasons = {one.node: one.reason for one in found.uncompared}
    assert reasons["conv2d"] == "it is computed with integers, which nothing dequantizes there"


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(8), nn.Dropout(0.5)], ids=["norm", "dropout"])
def test_a_model_that_is_being_trained_is_compared_in_evaluation_mode(layer: nn.Module) -> None:
    """So is its float model. Observers, statistics and mode of both stay what they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), layer, nn.ReLU(), nn.Conv2d(8, 4, 1))
    exported = torch.export.export(model.train(), (IMAGE,))
    trained = tq.prepare_qat_pt2e(exported, static())
    for batch in IMAGES * 2:
        trained.train()(*batch)
    with unharmed(exported, trained):
        comparison = tq.compare(exported, trained, IMAGES, progress=False)
    assert trained.training
    converted = tq.compare(exported, tq.convert_pt2e(trained), IMAGES, progress=False)
    evaluated = tq.move_exported_model_to_eval(exported.module())
    with torch.no_grad():
        noise = float((trained.eval()(IMAGE) - evaluated(IMAGE)).abs().max())
    alone = tq.compare(exported, trained, IMAGES[:1], progress=False)
    assert alone.outputs[0].error.max_error == pytest.approx(noise, rel=1e-4)
    assert converted.outputs[0].error.sqnr == pytest.approx(comparison.outputs[0].error.sqnr, abs=0.5)


def test_a_loaded_model_has_the_same_rows(tmp_path: Path) -> None:
    """All figures are those of the model that was saved."""
    pair = Pair.of(small_network(), IMAGES)
    tq.save(pair.found, tmp_path / "model.pt2", (IMAGE,))
    expected = pair.compare(IMAGES)
    loaded = tq.compare(pair.exported, tq.load(tmp_path / "model.pt2"), IMAGES, progress=False)
    for row, other in zip(loaded.operators, expected.operators, strict=True):
        # Nodes within an operator that a backend rewrote have other names when it is exported again.
        assert attrs.evolve(row, tensors=(), reason="") == attrs.evolve(other, tensors=(), reason="")
        for one, same in zip(row.tensors, other.tensors, strict=True):
            assert attrs.evolve(one, name="") == attrs.evolve(same, name="")
    assert [one.error for one in loaded.outputs] == [one.error for one in expected.outputs]


def test_a_composition_and_groups_of_four_bits_are_compared() -> None:
    """Byte embeddings of one backend, weights in groups of another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    batches = [(torch.arange(8)[None] + shift,) for shift in range(2)]
    groups = XNNPACKQuantizer().set_global(get_int4_weight_config(32))
    quantizer = tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), groups])
    pair = Pair.of(model, batches, quantizer)
    comparison = pair.compare(batches)
    assert fits(comparison, pair)
    assert comparison.worst is not None
    assert (comparison.worst.op, comparison.worst.reason) == (
        "aten.linear.default",
        "its weights are rounded",
    )
    assert comparison["embedding"].quantizer == "ExecuTorchEmbeddingQuantizer"
    assert comparison["embedding"].reason == "its weights are rounded"


@pytest.mark.long
def test_the_outputs_of_a_lowered_program_are_compared() -> None:
    """They are near those of the model that was lowered."""
    pytest.importorskip("executorch")
    pair = Pair.of(small_network(), [(IMAGE[:1],)])
    batches = [(IMAGE[:1],), (-IMAGE[:1],)]
    program = tq.lower(pair.found, (IMAGE[:1],), target="executorch")
    comparison = tq.compare(pair.exported, program, batches, progress=False)
    assert comparison.operators == ()
    assert comparison.batches == 2
    (output,) = comparison.outputs
    assert output.error.sqnr == pytest.approx(pair.compare(batches).outputs[0].error.sqnr, abs=3)
    assert json.loads(comparison.to_json())["batches"] == 2
