"""The quantizer: its config, its names, and what its table claims."""

import pytest
import torch
from tests.plugins.inductor_x86.models import Small
from torch import nn

import torchquilt as tq
from torchquilt_inductor_x86 import X86InductorQuantizer, get_default_x86_inductor_quantization_config


def exported(model: nn.Module, *inputs: torch.Tensor) -> torch.export.ExportedProgram:
    """A model, exported."""
    return torch.export.export(model.eval(), inputs)


def test_the_default_is_safe_without_vnni() -> None:
    """Two products of the largest integers fit into 16 bits."""
    config = get_default_x86_inductor_quantization_config()
    activation, weight = config.input_activation, config.weight
    assert activation is not None
    assert weight is not None
    assert 2 * activation.quant_max * max(-weight.quant_min, weight.quant_max) < 2**15
    assert get_default_x86_inductor_quantization_config(reduce_range=False).input_activation.quant_max == 255


def test_the_range_is_in_the_record_of_the_model() -> None:
    """The machine that runs a model can be told which integers it uses."""
    model, x = Small(), torch.randn(1, 3, 16, 16)
    for reduce_range in (True, False):
        quantizer = X86InductorQuantizer().set_global(
            get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
        )
        prepared = tq.prepare_pt2e(exported(model, x), quantizer)
        row = next(row for row in tq.ledger_of(prepared).rows if row.is_quantized)
        activation = next(one for one in row.tensors if "weight" not in str(one))
        assert ("[0, 127]" in activation.spec) == reduce_range


def test_what_is_claimed_of_a_small_network() -> None:
    """Products are claimed with what kernels fuse; pooling stays as it is."""
    explained = tq.explain(
        exported(Small(), torch.randn(2, 3, 16, 16)),
        X86InductorQuantizer.from_preset("static_int8_per_channel"),
    )
    patterns = {row.node: row.pattern for row in explained.rows if row.is_quantized}
    assert patterns["conv2d"] == "conv2d_relu"
    assert patterns["conv2d_2"] == patterns["add"] == patterns["relu_2"] == "conv2d_add_relu"
    assert patterns["linear"] == patterns["gelu"] == "linear_gelu"
    assert "adaptive_avg_pool2d" not in patterns


@pytest.mark.parametrize("preset", X86InductorQuantizer.PRESETS)
def test_each_preset_quantizes_a_linear(preset: str) -> None:
    """Each means something for a linear."""
    dtype = torch.bfloat16 if preset == "weight_only_int8" else torch.float32
    exported_one = exported(nn.Linear(8, 16).to(dtype), torch.randn(2, 8, dtype=dtype))
    explained = tq.explain(exported_one, X86InductorQuantizer.from_preset(preset))
    assert [row.is_quantized for row in explained.rows] == [True]


def test_the_names_of_torchao_mean_the_same() -> None:
    """Each alias makes the rule that the method of ours makes."""
    config = get_default_x86_inductor_quantization_config()
    theirs, ours = X86InductorQuantizer(), X86InductorQuantizer()
    theirs.set_module_name_qconfig("head", config).set_module_type_qconfig(nn.Linear, None)
    theirs.set_function_type_qconfig(nn.functional.conv2d, config)
    ours.set_module_name("head", config).set_object_type(nn.Linear, None)
    ours.set_object_type(nn.functional.conv2d, config)
    assert theirs.intent.rules == ours.intent.rules


@pytest.mark.parametrize(
    "layer",
    [nn.Conv3d(2, 2, 3), nn.ConvTranspose2d(2, 2, 3), nn.AvgPool2d(2)],
    ids=lambda layer: type(layer).__name__,
)
def test_what_has_no_kernel_is_refused_with_the_reason(layer: nn.Module) -> None:
    """A rule about it is an error that says so."""
    with pytest.raises(tq.IntentError, match=r"kernels? of integers"):
        X86InductorQuantizer().set_object_type(type(layer), get_default_x86_inductor_quantization_config())


def test_a_sum_that_is_needed_later_is_not_added_in_place() -> None:
    """The kernel overwrites what it adds, so a later reader rules it out."""

    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skip = torch.relu(x)
            return (self.conv(skip) + skip) * skip

    explained = tq.explain(
        exported(Later(), torch.randn(1, 4, 8, 8)),
        X86InductorQuantizer.from_preset("static_int8_per_channel"),
    )
    assert {row.node for row in explained.rows if row.is_quantized} == {"conv2d"}


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows", "is_quantized"),
    [
        (17, 2, 1, True),
        (2, 17, 1, True),
        (16, 16, 2, True),
        (16, 16, 1, False),
        (17, 1, 1, False),
        (1, 17, 4, False),
    ],
)
def test_products_that_torch_unrolls_are_left_in_float(
    inputs: int, outputs: int, rows: int, is_quantized: bool
) -> None:
    """No kernel of integers would compute them: they become loops."""
    explained = tq.explain(
        exported(nn.Linear(inputs, outputs), torch.randn(rows, inputs)),
        X86InductorQuantizer.from_preset("static_int8_per_channel"),
        strict=False,
    )
    (row,) = explained.rows
    assert row.is_quantized == is_quantized
    assert is_quantized or "not_unrolled" in row.reasons[0].code


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_named(dtype: torch.dtype) -> None:
    """Products of integers are for float32 models; the reason for another dtype names it."""
    explained = tq.explain(
        exported(nn.Linear(8, 16).to(dtype), torch.randn(2, 8, dtype=dtype)),
        X86InductorQuantizer.from_preset("static_int8_per_channel"),
        strict=False,
    )
    (row,) = explained.rows
    assert not row.is_quantized
    assert str(dtype) in row.reasons[0].text or row.reasons[0].code == "not_float"
