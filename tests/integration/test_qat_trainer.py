"""The Trainer of transformers trains a prepared model like any module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import normal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


class Scored(nn.Module):
    """A model that answers with its loss, as the Trainer wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and scores."""
        scores = self.model(images)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def rows(count: int) -> list[dict[str, Any]]:
    """Images, and whether more of one is above zero than below."""
    images = normal(count, 3, 6, 6)
    return [{"images": image, "labels": (image.mean() > 0).long()} for image in images]


@pytest.mark.parametrize("choice", ["moving_average", "learned"])
def test_it_trains_saves_goes_on_and_evaluates(choice: str, tmp_path: Path) -> None:
    """With checkpoints, from one of which another Trainer goes on, and evaluation in between."""
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    exported = torch.export.export(
        model.train(), (normal(4, 3, 6, 6),), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},)
    )

    def trainer(steps: int) -> Trainer:
        quantizer = tq.quantizer("xnnpack", "static_int8_per_channel")
        prepared = tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=choice)
        settings = TrainingArguments(
            str(tmp_path / choice),
            max_steps=steps,
            per_device_train_batch_size=4,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            learning_rate=0.01,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        scored = Scored(prepared)
        return Trainer(scored, settings, train_dataset=rows(32), eval_dataset=rows(8))

    whole = trainer(4)
    whole.train()
    further = trainer(4)
    further.train(resume_from_checkpoint=str(tmp_path / choice / "checkpoint-2"))
    first, second = whole.model.model, further.model.model
    state = second.state_dict()
    assert [name for name, value in first.state_dict().items() if not torch.equal(value, state[name])] == []
    images = normal(4, 3, 6, 6, seed=1)
    with torch.no_grad():
        assert torch.equal(tq.convert_pt2e(first)(images), first.eval()(images))
