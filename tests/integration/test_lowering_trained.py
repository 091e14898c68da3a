"""Trained models on the runtime: CNNs and encoders compute there what their quantized models do."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch

import torchquilt as tq
from small_models import SMALL_MODELS, Subject
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from trained import differences, train

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

_SUBJECTS = {subject.name: subject for subject in SMALL_MODELS}
MODELS = {
    "res_net": _SUBJECTS["res_net"],
    "mobile_net": _SUBJECTS["mobile_net"],
    "transformer": _SUBJECTS["transformer"],
    "transformer, static": attrs.evolve(_SUBJECTS["transformer"], is_dynamic=False),
}
#: The fixture ``record_property``, which tells what was measured (``--junit-xml`` has it).
Record = Callable[[str, object], None]


def trained(subject: Subject) -> torch.fx.GraphModule:
    """A model, exported in training mode and trained for nine steps; its BatchNorms are frozen after three.

    So the ranges are those of what evaluation computes, as they are after training for long.
    """
    torch.manual_seed(0)
    batches = [subject.batch(number) for number in range(3)]
    exported = torch.export.export(subject.module().requires_grad_(True).train(), batches[0])
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=subject.is_dynamic)
    quantizer = tq.ComposableQuantizer(
        [ExecuTorchEmbeddingQuantizer(), XNNPACKQuantizer().set_global(config)]
    )
    model = tq.prepare_qat_pt2e(exported, quantizer, fake_quantize="moving_average:0.5", strict=False)
    train(model, batches, rate=1e-3)
    tq.qat.freeze_batch_norm(model)
    train(model, batches * 2, rate=1e-3)
    return model


@pytest.mark.filterwarnings("ignore:A rule")
@pytest.mark.parametrize("name", MODELS)
def test_a_trained_model_runs_as_it_was_trained(name: str, record_property: Record) -> None:
    """Evaluation is the converted model, bit for bit; the program is it to 40 dB or one quantization step."""
    subject = MODELS[name]
    model = trained(subject)
    inputs = subject.batch(0)
    assert differences(model, inputs) == [0.0]
    program = tq.lower(tq.convert_pt2e(model), inputs, verify=True)
    record_property("verification", str(program.verification))
    assert program.verification
    assert program.ledger is not None
    codes = {row.lowered.code for row in program.ledger if row.is_quantized and row.lowered is not None}
    assert "delegated_as_integers" in codes
    assert codes & {"fell_back_to_float", "delegated_as_float"} == set()
