"""Lowering to OpenVINO: what runs as integers, what the ledger says, and the inputs and outputs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.openvino.models import Calling, images, program, quantized, statuses
from torchquilt.testing.operators import uniform
from torchquilt_openvino import form

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lowered() -> tq.LoweredProgram:
    """The program of a small model of images."""
    return program(*images())


def test_a_model_runs_as_integers(lowered: tq.LoweredProgram) -> None:
    """Convolutions, the sum, pooling and the linear read integers; relu is in their kernels."""
    assert set(statuses(lowered).values()) == {"integer_kernel", "removed"}
    assert lowered.delegates == ()
    assert {one.arithmetic for one in lowered.operations} == {"integer"}


def test_the_ledger_names_the_kernel(lowered: tq.LoweredProgram) -> None:
    """The sentence of a row has the kernel of OpenVINO, and what it reads."""
    assert lowered.ledger is not None
    row = lowered.ledger["conv2d"]
    assert row.lowered is not None
    assert "Convolution" in row.lowered.text
    assert row.lowered.text.endswith("reads u8")


def test_only_the_input_is_quantized_by_itself(lowered: tq.LoweredProgram) -> None:
    """All other conversions are in kernels that compute."""
    assert len(lowered.leftovers) == 1
    assert lowered.leftovers[0].stems_from == "conv2d"


def test_both_forms_of_weights_give_the_same_program() -> None:
    """Weights that are quantized when the model runs are stored quantized."""
    model, inputs = images()
    folded, unfolded = (program(model, inputs, fold=fold) for fold in (True, False))
    assert statuses(unfolded) == statuses(folded)
    assert torch.equal(folded.run(*inputs), unfolded.run(*inputs))
    assert unfolded.size < folded.size * 1.05


def test_lowering_is_reproducible() -> None:
    """Names of OpenVINO's objects, which count up in a process, are not in the file."""
    model, inputs = images()
    made = quantized(model, inputs)
    first, second = (tq.lower(made, inputs, target="openvino", verify=False).buffer for _ in range(2))
    assert first == second


def test_dynamic_sizes() -> None:
    """A dynamic batch stays so, with its bounds."""
    model, inputs = images()
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    made = quantized(model, inputs, dynamic_shapes=shapes)
    lowered = tq.lower(made, inputs, target="openvino", verify=True)
    assert set(statuses(lowered).values()) == {"integer_kernel", "removed"}
    assert (lowered.io.inputs[0].shape[0].low, lowered.io.inputs[0].shape[0].high) == (1, 8)
    for size in (1, 5, 8):
        batch = uniform(size, 3, 12, 12, seed=size)
        torch.testing.assert_close(lowered.run(batch), made(batch), rtol=0, atol=0.05)
    with pytest.raises(tq.ProgramInputError, match="not one that the program takes"):
        lowered.run(uniform(9, 3, 12, 12))


def test_threads_may_share_a_program(lowered: tq.LoweredProgram) -> None:
    """Each call gets its own outputs."""
    batches = [uniform(2, 3, 12, 12, seed=seed) for seed in range(16)]
    expected = [lowered.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lowered.run, batches)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_runner_survives_a_pickle(lowered: tq.LoweredProgram) -> None:
    """A copy compiles the program by itself."""
    copy = pickle.loads(pickle.dumps(lowered))
    batch = uniform(2, 3, 12, 12)
    assert torch.equal(copy.run(batch), lowered.run(batch))


def test_inputs_and_outputs_in_structures() -> None:
    """Dicts, keywords, constants, an output that is an input, and one that is returned twice."""

    class Structured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, both: dict[str, torch.Tensor], *, count: int, name: str) -> dict[str, object]:
            y = self.layer(both["b"]) * count
            return {"y": [y, y], "a": both["a"], "name": name, "none": None, "three": 3}

    inputs = {"a": uniform(2, 3), "b": uniform(4, 8)}, {"count": 2, "name": "n"}
    exported = torch.export.export(Structured().eval(), (inputs[0],), inputs[1])
    prepared = tq.prepare_pt2e(exported, tq.quantizer("openvino", preset="static_int8_per_channel"))
    prepared(inputs[0], **inputs[1])
    made = tq.convert_pt2e(prepared)
    lowered = tq.lower(torch.export.export(made, (inputs[0],), inputs[1]), target="openvino", verify="auto")
    found, expected = lowered.run(inputs[0], **inputs[1]), made(inputs[0], **inputs[1])
    assert found.keys() == expected.keys()
    assert (found["none"], found["three"]) == (None, 3)
    torch.testing.assert_close(found["y"], expected["y"])
    assert torch.equal(found["a"], inputs[0]["a"])


def test_integer_inputs_and_outputs() -> None:
    """A program that takes and returns integers computes as the one that does not."""
    model, inputs = images()
    made = quantized(model, inputs)
    floats = tq.lower(made, inputs, target="openvino", verify=True)
    integers = tq.lower(made, inputs, target="openvino", io_dtype=torch.uint8, verify=True)
    port, out = integers.io.inputs[0], integers.io.outputs[0]
    assert port.scale is not None
    assert out.scale is not None
    given = (inputs[0] / port.scale).round().add(port.zero_point).clamp(0, 255).to(torch.uint8)
    found = (integers.run(given).float() - out.zero_point) * out.scale
    torch.testing.assert_close(found, floats.run(*inputs), rtol=0, atol=1.01 * out.scale)
    assert set(statuses(integers).values()) == {"integer_kernel", "removed"}


def test_weights_alone_are_stored_as_integers() -> None:
    """The kernel multiplies floats with a weight of int8, and the file has no other."""
    model = Calling(lambda layer, x: layer(x), nn.Linear(256, 256))
    lowered = program(model, (uniform(4, 256),), "weight_only_int8")
    assert statuses(lowered) == {"linear": "integer_kernel"}
    assert lowered.ledger is not None
    told = lowered.ledger["linear"].lowered
    assert told is not None
    assert "a weight that is stored as i8" in told.text
    assert lowered.size < 256 * 256 + 32_000


def test_a_model_with_state_is_refused() -> None:
    """A program of OpenVINO would forget what it writes."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            found: torch.Tensor = self.layer(x) + self.seen
            return found

    model = quantized(Counting(), (uniform(2, 4),))
    with pytest.raises(tq.LoweringError, match="changes tensors that it keeps") as error:
        tq.lower(model, (uniform(2, 4),), target="openvino")
    assert "seen" in str(error.value.got)


def test_an_operator_without_a_translation_is_named() -> None:
    """The error has the operator of the model and its line."""
    model = Calling(lambda layer, x: torch.special.bessel_j0(layer(x)), nn.Linear(4, 4))
    made = quantized(model, (uniform(2, 4),))
    with pytest.raises(tq.LoweringError, match="no translation of an operator") as error:
        tq.lower(made, (uniform(2, 4),), target="openvino")
    assert "special_bessel_j0" in str(error.value.node)
    assert "models.py:" in str(error.value.node)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_precisions_are_refused(dtype: torch.dtype) -> None:
    """The error names the dtype; nothing of such a model is quantized."""
    model, inputs = nn.Linear(4, 4).to(dtype), (uniform(2, 4).to(dtype),)
    exported = torch.export.export(model.eval(), inputs)
    with pytest.warns(UserWarning, match="quantize"):
        made = tq.prepare_pt2e(exported, tq.quantizer("openvino", preset="static_int8"), strict=False)
    made = tq.convert_pt2e(tq.calibrate(made, [inputs]))
    with pytest.raises(tq.LoweringError, match=str(dtype)):
        tq.lower(made, inputs, target="openvino")


def test_what_openvino_refuses_as_integers_is_left_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snippets have no kernel of a mish that quantizes its output; its words are in the ledger.

    The target writes such a mish out, so that it is not refused. Without that it is.
    """
    model = Calling(lambda one, other, x: other(nn.functional.mish(one(x))), nn.Linear(8, 8), nn.Linear(8, 4))
    inputs = (uniform(4, 8),)
    made = quantized(model, inputs)
    written_out = statuses(tq.lower(made, inputs, target="openvino", verify=True, strict=True))
    assert (written_out["linear"], written_out["linear_1"]) == ("integer_kernel", "integer_kernel")
    monkeypatch.setattr(form, "_write_out_mish", lambda graph: None)
    lowered = tq.lower(made, inputs, target="openvino", verify=True)
    found = statuses(lowered)
    assert (found["linear"], found["linear_1"]) == ("integer_kernel", "refused_by_delegate")
    assert lowered.ledger is not None
    told = lowered.ledger["linear_1"].lowered
    assert told is not None
    assert "Mish" in told.text
    with pytest.raises(tq.LoweringError, match="refuses operators"):
        tq.lower(made, inputs, target="openvino", strict=True)


def test_products_in_one_kernel_multiply_integers() -> None:
    """OpenVINO makes one kernel of two linears and what is between them, which reads floats."""
    model = Calling(lambda one, other, x: other(torch.sigmoid(one(x))), nn.Linear(8, 8), nn.Linear(8, 4))
    lowered = program(model, (uniform(4, 8),))
    assert set(statuses(lowered).values()) == {"integer_kernel"}


def test_times_have_the_operators_of_the_model() -> None:
    """Each kernel that takes time computes operators that the ledger knows."""
    model, inputs = images(batch=8)
    profile = program(model, inputs).profile(inputs)
    assert profile.attributed >= 0.9
    assert {"conv2d", "conv2d_1", "linear"} <= profile.by_node().keys()


@pytest.mark.parametrize(
    "clip",
    [lambda x: x.clamp(-0.25, 0.5), lambda x: nn.functional.hardtanh(x, -0.25, 0.5), nn.functional.relu6],
)
def test_values_that_are_clipped_in_float_are_those_of_the_model(clip: Callable[..., torch.Tensor]) -> None:
    """OpenVINO would make one FakeQuantize of a quantize and a clamp, with steps of another size."""
    model = Calling(lambda layer, x: clip(layer(x)), nn.Linear(2, 8))
    inputs = (uniform(1, 8, 5, 2),)
    made = quantized(model, inputs)
    found = tq.lower(made, inputs, target="openvino", verify=False).run(*inputs)
    torch.testing.assert_close(found, made(*inputs))


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 2), (64, 64)])
def test_weights_alone_are_integers_where_the_table_claims_them(inputs: int, outputs: int) -> None:
    """From four inputs and two outputs on."""
    model = nn.Sequential(nn.Linear(inputs, outputs)).eval()
    found = program(model, (uniform(5, inputs),), preset="weight_only_int8")
    assert set(statuses(found).values()) == {"integer_kernel"}


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 64), (64, 1), (1, 1)])
def test_small_weights_alone_are_refused_beforehand(inputs: int, outputs: int) -> None:
    """OpenVINO makes floats of them."""
    model = nn.Sequential(nn.Linear(inputs, outputs)).eval()
    with pytest.raises(tq.IntentError, match="constraint:large_weight"):
        program(model, (uniform(5, inputs),), preset="weight_only_int8")


class Products(nn.Module):
    """A weight that is multiplied as GPT-2 does, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(uniform(16, 8)), nn.Parameter(uniform(8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run it."""
        return torch.addmm(self.bias, x, self.weight), x @ self.weight


def test_weights_alone_of_other_products_are_integers() -> None:
    """They are written as linear."""
    found = statuses(program(Products().eval(), (uniform(5, 16),), preset="weight_only_int8"))
    assert found == {"addmm": "integer_kernel", "matmul": "integer_kernel"}


@pytest.mark.parametrize("last", [torch.relu, torch.sigmoid, nn.functional.silu, nn.functional.leaky_relu])
def test_an_activation_behind_a_chain_of_products_is_claimed_where_it_is_in_their_kernel(
    last: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """OpenVINO makes one kernel of the products, and of some activations another one."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8) for _ in range(2)]
    model = Calling(lambda one, two, x: last(two(torch.relu(one(x)))), *layers)
    found = program(model, (uniform(4, 8),))
    assert set(statuses(found).values()) <= {"integer_kernel", "removed", "float_kernel"}
