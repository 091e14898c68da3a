"""One seed: a network trained from nothing, and what quantization makes of it, without and with training."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from digits import Digits, digits, disturbed
from network import BATCH, Network, accuracy, train
from support import quantizer

LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-4
SCALE_LEARNING_RATE = 3e-4
"""Of scales that are learned. Each of them moves a whole tensor or channel."""
SHARE = 0.001
"""How far a batch moves a range. Calibration chose the ranges of least error, which are not those from the
smallest to the largest value, least of all at 4 bits; so training stays near them."""
FROZEN_FROM = 0.75
"""The share of the epochs after which ranges and running statistics stay."""
CALIBRATED_WITH = 10
"""Batches."""


@attrs.frozen
class Figures:
    """The figures of one model.

    Args:
        name: of the variant.
        accuracy: percentage of the test set that it names right.
        kilobytes: of the saved file, 10**3 bytes.
        seconds: that training, or quantizing, took.
    """

    name: str
    accuracy: float
    kilobytes: float
    seconds: float


def run(seed: int, epochs: int, qat_epochs: int) -> list[Figures]:
    """Train a network from nothing, and make all variants of it.

    Args:
        seed: of the split, the weights, and the order and disturbance of the data.
        epochs: of the float network.
        qat_epochs: of each model that is trained further.
    """
    torch.set_num_threads(1)  # a second thread would only wait for such small tensors; seeds run in parallel
    torch.manual_seed(seed)
    data, network = digits(seed), Network()
    found = [_figures("float", data, lambda: _trained(network, data, epochs, seed))]
    longer = copy.deepcopy(network)
    found.append(_figures("float, trained on", data, lambda: _trained(longer, data, qat_epochs, seed + 1)))
    batch = (data.images[:BATCH],)
    exported = torch.export.export(network, batch, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for name, make in _variants(exported, data, qat_epochs, seed):
        found.append(_figures(name, data, make))
    return found


def _figures(name: str, data: Digits, make: Callable[[], nn.Module]) -> Figures:
    start = time.perf_counter()
    model = make()
    seconds = time.perf_counter() - start
    return Figures(name, accuracy(model, data), _kilobytes(model, data), seconds)


def _kilobytes(model: nn.Module, data: Digits) -> float:
    """Size of the file that a model is saved as."""
    batch = (data.images[:BATCH],)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        if isinstance(model, GraphModule):
            tq.save(model, path, batch)
        else:
            torch.export.save(torch.export.export(model, batch), path)
        return path.stat().st_size / 1e3


def _variants(
    exported: ExportedProgram, data: Digits, epochs: int, seed: int
) -> Iterator[tuple[str, Callable[[], GraphModule]]]:
    """The names of what is made of the float network, and how."""
    yield "PTQ, 8 bits", lambda: tq.convert_pt2e(calibrated(exported, data, 8, seed))
    yield "PTQ, 4 bits", lambda: tq.convert_pt2e(calibrated(exported, data, 4, seed))
    yield (
        "QAT, 4 bits",
        lambda: quantized_by_training(exported, data, f"moving_average:{SHARE}", epochs, seed),
    )
    yield (
        "QAT, 4 bits, learned ranges",
        lambda: quantized_by_training(exported, data, "learned", epochs, seed),
    )


def calibrated(exported: ExportedProgram, data: Digits, bits: int, seed: int) -> GraphModule:
    """A model that has seen some batches, disturbed as in training."""
    generator = torch.Generator().manual_seed(seed)
    batches = [disturbed(images, generator) for images in data.images.split(BATCH)[:CALIBRATED_WITH]]
    return tq.calibrate(tq.prepare_pt2e(exported, quantizer(bits)), batches, progress=False)


def quantized_by_training(
    exported: ExportedProgram, data: Digits, fake_quantize: str, epochs: int, seed: int
) -> GraphModule:
    """A model of 4 bits, trained from calibrated ranges, then converted.

    Raises:
        RuntimeError: what was converted computes something else than what was trained.
    """
    model = tq.prepare_qat_pt2e(
        exported,
        quantizer(4),
        fake_quantize=fake_quantize,
        ranges_from=calibrated(exported, data, 4, seed),
    )
    last = int(epochs * FROZEN_FROM)
    schedule = tq.qat.Schedule(freeze_observers_at=last, freeze_batch_norm_at=last)
    train(model, data, epochs, _groups(model, fake_quantize), seed=seed + 1, at_epoch=schedule.step)
    converted = tq.convert_pt2e(model)
    with torch.no_grad():
        if not torch.equal(model(data.test_images), converted(data.test_images)):
            raise RuntimeError("What was converted computes something else than what was trained.")
    return converted


def _groups(model: nn.Module, fake_quantize: str = "") -> list[dict[str, Any]]:
    """Parameters in groups: scales that are learned have a rate of their own, and do not decay."""
    scales = [*tq.qat.learned_scales(model)] if fake_quantize == "learned" else []
    of_scales = {id(scale) for scale in scales}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in of_scales]
    groups = [{"params": weights, "lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}]
    if scales:
        groups.append({"params": scales, "lr": SCALE_LEARNING_RATE, "weight_decay": 0.0})
    return groups


def _trained(network: nn.Module, data: Digits, epochs: int, seed: int) -> nn.Module:
    train(network, data, epochs, _groups(network), seed=seed)
    return network
