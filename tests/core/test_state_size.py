"""Contents of a converted model: integers, their parameters and the float rest, each once, and no more."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.functional import linear

import torchquilt as tq
from strategies import INT8, WEIGHT, ByFunction, Fn, calls, normal, one_call, prepare, weights_of
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

# Large enough for the graph as JSON and the example input to be less than 2 % of a file.
N = 1536
#: float32 scale and int64 zero point; for embeddings both are float32
PER_CHANNEL, PER_ROW = 4 + 8, 4 + 4


@attrs.frozen
class Case:
    """A model, how it is quantized, and the bytes that its integers, their parameters and its rest take."""

    model: Callable[[], nn.Module]
    quantizer: Callable[[], Any]
    inputs: tuple[Any, ...]
    size: int


def xnnpack(*in_float: str, **asked: bool) -> XNNPACKQuantizer:
    """XNNPACK per channel, everywhere but in the modules of these names."""
    config = get_symmetric_quantization_config(is_per_channel=True, **asked)
    quantizer = XNNPACKQuantizer().set_global(config)
    for name in in_float:
        quantizer.set_module_name(name, None)
    return quantizer


def composed() -> tq.ComposableQuantizer:
    """Embeddings byte by byte, linears dynamically."""
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack(is_dynamic=True)])


def mlp() -> nn.Module:
    """Two linears with a bias and a ReLU between."""
    return nn.Sequential(nn.Linear(N, N), nn.ReLU(), nn.Linear(N, N))


def tied() -> nn.Module:
    """An embedding whose table is the weight of the output projection, too."""
    table = nn.Embedding(N, N)
    head = nn.Linear(N, N, bias=False)
    head.weight = table.weight
    return Fn(lambda m, ids: m.head(m.table(ids)), table=table, head=head)


def slices() -> nn.Module:
    """Three weights cut from one tensor, the one in the middle in a matrix product of its own."""
    whole = normal(3 * N, N)
    parts = {name: nn.Parameter(whole[i * N : (i + 1) * N]) for i, name in enumerate("qkv")}
    return Fn(lambda m, x: linear(x, m.q) + torch.matmul(x, m.k) + linear(x, m.v), **parts)


def cast() -> nn.Module:
    """A float16 weight that is cast and transposed at each of its two uses."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return linear(torch.relu(linear(x, m.w.float().t())), m.w.float().t())

    return Fn(forward, w=nn.Parameter(normal(N, N).half()))


def one_scale_for_two() -> ByFunction:
    """The weights of both linears share their scales."""
    first: list[tuple[Node, Node]] = []

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        first.append((node.args[1], node))
        spec: Any = WEIGHT if len(first) == 1 else tq.SharedQuantizationSpec(first[0])
        return tq.QuantizationAnnotation({node.args[1]: spec})

    return ByFunction(decide)


def conv_bn() -> nn.Module:
    """Two convolutions, each with a BatchNorm behind it."""
    layers = [nn.Conv2d(128, N, 3, bias=False), nn.BatchNorm2d(N), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(N, 128, 3), nn.BatchNorm2d(128))


X, IDS, IMAGE = normal(1, N), torch.arange(8), normal(1, 128, 5, 5)
CASES = {
    "linear": Case(mlp, xnnpack, (X,), 2 * (N * N + PER_CHANNEL * N + 4 * N)),
    "linear, dynamic": Case(
        mlp, lambda: xnnpack(is_dynamic=True), (X,), 2 * (N * N + PER_CHANNEL * N + 4 * N)
    ),
    "conv and BatchNorm": Case(conv_bn, xnnpack, (IMAGE,), 2 * 9 * 128 * N + (PER_CHANNEL + 4) * (128 + N)),
    "embedding": Case(
        lambda: nn.Embedding(4 * N, 512), ExecuTorchEmbeddingQuantizer, (IDS,), 4 * N * (512 + PER_ROW)
    ),
    "tied": Case(tied, composed, (IDS,), 2 * N * N + PER_ROW * N + PER_CHANNEL * N),
    "shared scale": Case(mlp, one_scale_for_two, (X,), 2 * (N * N + 4 * N) + PER_CHANNEL * N),
    "half in float": Case(mlp, lambda: xnnpack("2"), (X,), N * N + PER_CHANNEL * N + 4 * N * N + 2 * 4 * N),
    "slices": Case(slices, lambda: weights_of("linear"), (X,), 2 * (N * N + PER_CHANNEL * N) + 4 * N * N),
    "cast": Case(cast, lambda: weights_of("linear"), (X,), N * N + PER_CHANNEL * N),
}


def converted(case: Case, **options: Any) -> GraphModule:
    """The model of a case, calibrated with its inputs and converted."""
    torch.manual_seed(0)
    prepared = prepare(case.model(), case.quantizer(), *case.inputs)
    return tq.convert_pt2e(tq.calibrate(prepared, [case.inputs]), **options)


@pytest.fixture(scope="module")
def models() -> dict[str, GraphModule]:
    """Each case, converted."""
    return {name: converted(case) for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_state_is_no_larger_than_what_has_to_be_in_it(name: str, models: dict[str, GraphModule]) -> None:
    """Integers, parameters and float rest add up to the size of the state, and of the memory behind it."""
    state = models[name].state_dict()
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    assert sum(tensor.nbytes for tensor in state.values()) == pytest.approx(CASES[name].size, rel=0.02)
    assert sum(memory.values()) == pytest.approx(CASES[name].size, rel=0.02)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_file_is_no_larger_than_what_has_to_be_in_it(
    name: str, models: dict[str, GraphModule], tmp_path: Path
) -> None:
    """A state dict, an exported program and an artifact with its lock: each within 2 % of the numbers."""
    case, model = CASES[name], models[name]
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.export.save(torch.export.export(model, case.inputs), tmp_path / "program.pt2")
    tq.save(model, tmp_path / "artifact.pt2", case.inputs)
    for path in tmp_path.iterdir():
        assert path.stat().st_size == pytest.approx(case.size, rel=0.02), path.name


@pytest.mark.parametrize("name", CASES)
def test_every_stored_tensor_is_read(name: str, models: dict[str, GraphModule]) -> None:
    """No name of the state dict is there for nothing, and no tensor is there under two names."""
    model = models[name]
    read = {str(node.target) for node in model.graph.find_nodes(op="get_attr") if node.users}
    assert set(model.state_dict()) == read
    assert len({tensor.data_ptr() for tensor in model.state_dict().values()}) == len(read)


# ----------------------------------------------------------------------------------------------------------
# fold_quantize
# ----------------------------------------------------------------------------------------------------------

Spec = tq.QuantizationSpec
SPECS = {
    "per tensor": INT8,
    "per axis": WEIGHT,
    "other axis": Spec("int8", granularity="per_axis", ch_axis=1),
    "per group": Spec("int8", -8, 7, "per_group", group_size=4, symmetric=True),
    "float zero point": Spec("uint8", granularity="per_axis", ch_axis=0, zero_point_domain="float"),
    "float zero point, other axis": Spec(
        "uint8", granularity="per_axis", ch_axis=1, zero_point_domain="float"
    ),
    "float zero point, per group": Spec(
        "uint8", granularity="per_group", group_size=4, zero_point_domain="float"
    ),
    "float zero point, per tensor": Spec("uint8", zero_point_domain="float"),
    "fixed": tq.FixedQParamsQuantizationSpec("int8", 1 / 128, 0),
}


def both(model: nn.Module, quantizer: Any, x: torch.Tensor) -> tuple[GraphModule, GraphModule]:
    """Folded and not, from one prepared model."""
    prepared = tq.calibrate(prepare(model, quantizer, x), [(x,)])
    return tq.convert_pt2e(prepared), tq.convert_pt2e(prepared, fold_quantize=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("spec", SPECS)
def test_without_folding_the_weight_stays_and_is_quantized_in_the_graph(
    spec: str, dtype: torch.dtype
) -> None:
    """fold_quantize=False keeps the float weight, stores no integers, and computes the same bits."""
    torch.manual_seed(0)
    model, x = nn.Linear(8, 6).to(dtype).eval(), normal(4, 8).to(dtype)
    folded, unfolded = both(model, weights_of("linear", SPECS[spec]), x)
    integers = {torch.int8, torch.uint8}
    assert integers & {tensor.dtype for tensor in folded.state_dict().values()}
    assert not integers & {tensor.dtype for tensor in unfolded.state_dict().values()}
    assert torch.equal(unfolded.state_dict()["weight"], model.weight)
    assert "weight" not in folded.state_dict()
    assert torch.equal(unfolded(x), folded(x))
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(unfolded, (x,)), buffer)
    buffer.seek(0)
    assert torch.equal(torch.export.load(buffer).module()(x), folded(x))


@pytest.mark.parametrize("name", CASES)
def test_folded_or_not_the_bits_are_the_same(name: str, models: dict[str, GraphModule]) -> None:
    """Whatever the model: BatchNorm, tied, shared, cut out, cast, half of it in float."""
    unfolded = converted(CASES[name], fold_quantize=False)
    assert torch.equal(unfolded(*CASES[name].inputs), models[name](*CASES[name].inputs))
    stored = {tensor.dtype for tensor in unfolded.state_dict().values() if tensor.dim() > 1}
    assert not stored & {torch.int8, torch.uint8}


def test_folding_is_the_default() -> None:
    """Nothing has to be asked for weights to be stored as integers."""
    prepared = prepare(nn.Linear(8, 8), weights_of("linear"), normal(4, 8))
    one, other = tq.convert_pt2e(prepared), tq.convert_pt2e(prepared, fold_quantize=True)
    assert one.code == other.code
    assert not calls(one, ".quantize_per")


def test_a_weight_that_is_not_folded_can_still_be_changed() -> None:
    """Its integers follow it, within the range that it had when it was converted."""
    model, x = nn.Linear(8, 8, bias=False).eval(), normal(4, 8)
    _, unfolded = both(model, weights_of("linear"), x)
    before = unfolded(x)
    with torch.no_grad():
        unfolded.get_parameter("weight").mul_(0.5)
    torch.testing.assert_close(unfolded(x), before / 2, atol=0.05, rtol=0)


def test_a_constant_behind_a_quantized_constant_is_the_same_unfolded() -> None:
    """A quantized table is read at constant positions, and the result is quantized again, in two ways."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        name = str(node.target)
        if "embedding" in name:
            return tq.QuantizationAnnotation({node.args[0]: WEIGHT}, INT8)
        if "aten.add." in name:
            return tq.QuantizationAnnotation({node.args[1]: Spec("int8", -8, 7)})
        return None

    model = Fn(lambda m, x: x + m.table(m.ids), table=nn.Embedding(8, 8), ids=torch.arange(4)).eval()
    x = normal(4, 8)
    folded, unfolded = both(model, ByFunction(decide), x)
    assert len(calls(unfolded, ".quantize_per")) == 3
    assert not calls(folded, ".quantize_per")
    assert torch.equal(unfolded(x), folded(x))


def test_a_derived_bias_is_the_same_unfolded() -> None:
    """An int32 bias stays a float bias with the operators that quantize it."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        x, weight, bias = node.args
        derived = tq.DerivedQuantizationSpec(
            ((x, node), (weight, node)), lambda q: (q[0][0] * q[1][0], torch.tensor(0)), "int32"
        )
        return tq.QuantizationAnnotation({x: INT8, weight: INT8, bias: derived}, INT8)

    x = normal(4, 8)
    folded, unfolded = both(nn.Linear(8, 8).eval(), ByFunction(decide), x)
    assert folded.state_dict()["bias_int32"].dtype is torch.int32
    assert list(unfolded.state_dict()) == ["weight", "bias"]
    assert torch.equal(unfolded(x), folded(x))


def test_an_unfolded_float_zero_point_is_within_half_a_step() -> None:
    """The operators in the graph round once, after adding the zero point."""
    spec = SPECS["float zero point"]
    model = nn.Linear(8, 6, bias=False).eval()
    _, unfolded = both(model, weights_of("linear", spec), torch.eye(8))
    weight = unfolded(torch.eye(8)).T
    scale = unfolded.get_buffer(one_call(unfolded, "dequantize_per_channel").args[1].target)
    assert bool(((weight - model.weight).abs() <= scale[:, None] * 0.501).all())
