"""Architectures of which nothing comes: torch does not export them, or no row is for their dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import torchquilt as tq
from architectures import TEXT, Architecture, made, padded
from architectures.behaviours import Subject, results
from architectures.unexportable import TABLE, Refusal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


@pytest.mark.parametrize("refusal", TABLE, ids=str)
def test_torch_still_refuses_to_export_it(refusal: Refusal) -> None:
    """Once torch and transformers export it, it belongs among those that are quantized."""
    with pytest.raises(refusal.error) as caught:
        Subject.of(refusal.architecture)
    assert refusal.message in str(caught.value), refusal.reason


HALF = (
    Architecture("bert, float16", lambda: made("bert", **TEXT)().to(torch.float16), padded()),
    Architecture(
        "opt, bfloat16",
        lambda: made("opt", **TEXT, ffn_dim=64, use_cache=False)().to(torch.bfloat16),
        padded(),
    ),
)


@pytest.mark.parametrize(
    ("architecture", "is_dynamic", "code"),
    [
        (HALF[0], False, "constraint:float32"),
        (HALF[1], False, "constraint:float32"),
        (HALF[1], True, "constraint:dtype"),  # a float16 one is quantized dynamically
    ],
    ids=["float16, static", "bfloat16, static", "bfloat16, dynamic"],
)
def test_half_precision_stays_as_it_is_and_says_why(
    architecture: Architecture, is_dynamic: bool, code: str, tmp_path: Path
) -> None:
    """Asking is an error; where that is waived the bits stay the same, and the ledger names the dtype."""
    subject = Subject.of(architecture)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    quantizer = XNNPACKQuantizer().set_global(config)
    with pytest.raises(tq.IntentError, match="float32"):
        tq.prepare_pt2e(subject.exported, quantizer)

    with pytest.warns(UserWarning, match="nothing is quantized"):
        prepared = tq.prepare_pt2e(subject.exported, quantizer, strict=False)
    converted = tq.convert_pt2e(prepared)
    tq.save(converted, tmp_path / "model.pt2", subject.batches[0])
    loaded = tq.load(tmp_path / "model.pt2").module()
    linears = [row for row in tq.ledger_of(converted) if row.op == "aten.linear.default"]
    assert {row.code for row in linears} == {code}
    for model in (converted, loaded):
        for expected, found in zip(subject.expected, results(model, subject.batches), strict=True):
            assert all(map(torch.equal, expected, found))
