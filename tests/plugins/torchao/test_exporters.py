"""Quantizers in the exporters of others: ExecuTorch's recipes, those of transformers, kinds of exports."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

import torchquilt as tq
from plugins.oracle import are_bit_equal, describe
from plugins.torchao.flows import by_torchquilt, exported
from plugins.torchao.models import model_of
from plugins.torchao.vendors import VENDORS
from strategies import sqnr
from torchquilt_torchao import as_torchao

pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters' own


def run_pte(content: bytes, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The first output of a program on ExecuTorch's runtime."""
    from executorch.runtime import Runtime

    return Runtime.get().load_program(content).load_method("forward").execute(list(inputs))[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("preset", "name", "least"),
    [
        # Integers from end to end: the runtime gives the bits of the Q/DQ model.
        ("xnnpack:static_int8_per_channel", "residual", float("inf")),
        # The kernel adds up the products in another order.
        ("xnnpack:dynamic_int8_per_channel", "perceptron", 100.0),
    ],
)
def test_a_recipe_of_executorch_takes_our_quantizers(preset: str, name: str, least: float) -> None:
    """``executorch.export`` quantizes and lowers with them; the program computes what ours does."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.export import ExportRecipe, LoweringRecipe, QuantizationRecipe, export

    model = model_of(name)
    recipe = ExportRecipe(
        quantization_recipe=QuantizationRecipe(quantizers=[as_torchao(preset, strict=False)]),
        lowering_recipe=LoweringRecipe(partitioners=[XnnpackPartitioner()]),
    )
    session = export(copy.deepcopy(model.module).eval(), [model.inputs], recipe)
    found = run_pte(session.get_pte_buffer(), model.inputs)

    assert sqnr(by_torchquilt(model, preset)(*model.inputs), found) >= least
    assert 20 < sqnr(model.module.eval()(*model.inputs), found) < 80, "it is quantized"


def _vision() -> tuple[Any, dict[str, torch.Tensor]]:
    """A small ViT, and inputs of it."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "image_size": 16, "patch_size": 8}
    model = ViTModel(ViTConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)).eval()
    return model, {"pixel_values": torch.randn(1, 3, 16, 16)}


def _by_transformers(kind: str, model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    """The program that an exporter of transformers makes."""
    exporters = pytest.importorskip("transformers.exporters", reason="transformers for Python 3.10 has none")
    config = getattr(exporters, f"{kind}Config")(**options)
    return getattr(exporters, f"{kind}Exporter")().export(model, inputs, config=config).program


def _quantized_alike(model: Any, inputs: dict[str, torch.Tensor], preset: str) -> GraphModule:
    """The float program of the exporter, quantized by our flow."""
    program = _by_transformers("Dynamo", model, inputs)
    prepared = tq.prepare_pt2e(program, preset, activation_observer="minmax", strict=False)
    prepared(**inputs)
    return tq.convert_pt2e(prepared)


def _pt2e(inputs: dict[str, torch.Tensor], preset: str) -> Any:
    from transformers.exporters import PT2EQuantizer

    return PT2EQuantizer(as_torchao(preset, strict=False), calibration_dataset=[inputs])


@pytest.mark.long
def test_an_exporter_of_transformers_takes_our_quantizers() -> None:
    """Its ``PT2EQuantizer`` with one of ours gives the bits that our own flow gives."""
    preset = "xnnpack:static_int8_per_channel"
    model, inputs = _vision()
    found = _by_transformers("Dynamo", model, inputs, quantizer=_pt2e(inputs, preset)).module()
    expected = _quantized_alike(model, inputs, preset)
    assert torch.equal(found(**inputs)["last_hidden_state"], expected(**inputs)["last_hidden_state"])
    assert any("quantize_per_tensor" in line for line in describe(found))


@pytest.mark.exhaustive
def test_transformers_exports_our_quantizers_to_executorch() -> None:
    """The program runs on the runtime, and computes what our flow does."""
    preset = "xnnpack:static_int8_per_channel"
    model, inputs = _vision()
    program = _by_transformers("Executorch", model, inputs, quantizer=_pt2e(inputs, preset))
    found = run_pte(program.buffer, (inputs["pixel_values"],))
    expected = _quantized_alike(model, inputs, preset)(**inputs)["last_hidden_state"]
    assert sqnr(expected, found) > 40


@pytest.mark.parametrize("vendor", ["vulkan", "x86_inductor"])
def test_strict_exports_and_exports_without_guards(vendor: str) -> None:
    """Both are quantized as the other ones are; a program without guards stays one."""
    model = model_of("perceptron")
    expected = by_torchquilt(model, VENDORS[vendor]())
    without = exported(model).module(check_guards=False)
    for module in (without, exported(model, strict=True).module()):
        prepared = tq.prepare_pt2e(module, VENDORS[vendor](), activation_observer="minmax")
        found = tq.convert_pt2e(tq.calibrate(prepared, [model.inputs]))
        assert describe(found) == describe(expected)
        assert are_bit_equal(found, expected, model.inputs)
        assert not (module is without and any("guard" in node.name for node in found.graph.nodes))
