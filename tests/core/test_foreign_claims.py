"""Compositions of backends for different targets: told beforehand, in errors and in the ledger."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer

TOKENS = (torch.tensor([[1, 5, 0], [7, 7, 2]]),)


class Encoder(nn.Module):
    """A table and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 64)
        self.linear = nn.Linear(64, 16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Look up, and project."""
        found: torch.Tensor = self.linear(self.table(tokens))
        return found


def _composed(second: str) -> tq.ComposableQuantizer:
    tables = ExecuTorchEmbeddingQuantizer.from_preset("byte_per_row")
    return tq.ComposableQuantizer([tables, tq.quantizer(second, preset="static_int8_per_channel")])


def _converted(second: str) -> GraphModule:
    torch.manual_seed(0)
    exported = torch.export.export(Encoder().eval(), TOKENS)
    return tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, _composed(second)), [TOKENS]))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_composition_is_asked_beforehand(target: str) -> None:
    """The answer for a target says on which ones the row runs as integers; its own target is one."""
    (row,) = (row for row in _composed(target).quantization_capabilities().filter(preset="byte_per_row"))
    assert row.backend == "executorch_embedding"
    config = ExecuTorchEmbeddingQuantizer.PRESETS["byte_per_row"]()
    capabilities = _composed(target).quantization_capabilities()
    answer = capabilities.supports(nn.Embedding, config, target=target)
    assert not answer
    assert f"target={target} (runs as integers on executorch)" in str(answer)
    assert capabilities.supports(nn.Embedding, config, target="executorch")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_lower_names_the_operators_of_the_foreign_backend(target: str) -> None:
    """A composition that is lowered as it is is refused before anything is made of it."""
    with pytest.raises(tq.LoweringError, match="does not say how it is lowered") as caught:
        tq.lower(_converted(target), TOKENS, target=target)
    assert caught.value.node == "embedding"
    assert f"quantized it for executorch, and promises nothing for {target}" in str(caught.value)
    assert "supports(" in str(caught.value)


@pytest.mark.long
def test_what_runs_without_promise_is_no_error() -> None:
    """ONNX Runtime reads the integers of the table: strict lowering takes that."""
    program = tq.lower(
        _converted("onnxruntime"), TOKENS, target="onnxruntime", backends=["onnxruntime"], strict=True
    )
    assert program.ledger is not None
    assert {row.lowered.code for row in program.ledger if row.lowered is not None} == {"integer_kernel"}


@pytest.mark.long
def test_what_falls_back_says_that_nothing_was_promised() -> None:
    """OpenVINO dequantizes the table: the ledger says who quantized it for what, and strict raises."""
    model = _converted("openvino")
    program = tq.lower(model, TOKENS, target="openvino", backends=["openvino"])
    assert program.ledger is not None
    status = program.ledger["embedding"].lowered
    assert status is not None
    assert status.code == "fell_back_to_float"
    assert status.text.endswith("promises nothing for openvino")
    with pytest.raises(tq.LoweringError, match="quantized for another target") as caught:
        tq.lower(model, TOKENS, target="openvino", backends=["openvino"], strict=True)
    assert "embedding" in str(caught.value.node)
