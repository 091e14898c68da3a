"""Trained models on the runtime: CNNs and encoders compute there what their quantized models do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchquilt as tq
from architectures import Architecture, encoders, vision
from architectures.behaviours import measure, quantizer, results
from trained import distance_to_target

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

_ARCHITECTURES = {one.name: one for table in (vision.TABLE, encoders.TABLE) for one in table}
NAMES = ("resnet", "mobilenet_v2", "distilbert", "albert")
#: What a program has to agree with the quantized model in, in dB.
LEAST = 40.0
#: The fixture ``record_property``, which tells what was measured (``--junit-xml`` has it).
Record = Callable[[str, object], None]


def trained(architecture: Architecture, inputs: dict[str, Any], *, is_dynamic: bool) -> torch.fx.GraphModule:
    """An architecture, exported in training mode and trained for a step."""
    exported = torch.export.export(
        architecture.model().train(),
        (),
        inputs,
        strict=architecture.strict,
        dynamic_shapes=architecture.dynamic_shapes(),
    )
    model = tq.prepare_qat_pt2e(exported, quantizer(is_dynamic=is_dynamic))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        distance_to_target(model(**inputs)).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_runs_as_it_was_trained(name: str, is_dynamic: bool, record_property: Record) -> None:
    """Evaluation, the converted model, and the program: bit-equal, and 40 dB or more."""
    architecture = _ARCHITECTURES[name]
    inputs = architecture.inputs(0)
    model = trained(architecture, inputs, is_dynamic=is_dynamic)
    converted = tq.convert_pt2e(model)
    expected = results(model.eval(), [inputs])
    found = results(converted, [inputs])
    pairs = [*zip(expected[0], found[0], strict=True)]
    assert all(torch.equal(one, other) for one, other in pairs if isinstance(one, torch.Tensor))
    noise = measure(found, results(tq.lower(converted, inputs).run, [inputs]))
    record_property("sqnr", f"{min(noise):.1f} dB, program to Q/DQ")
    assert min(noise) >= LEAST, noise
