"""Float models that are not files: functions that make them, and folders of Hugging Face models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import torchquilt as tq
from commands import Files, Run
from strategies import normal

SOURCE = """
import torch
from torch import nn

print("imported")

class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        return self.fc(x)

def pair():
    return Scaled(), (torch.zeros(3, 16),)

def free():
    return Scaled(), {"x": torch.zeros(3, 16)}, {"x": {0: torch.export.Dim("rows", min=2, max=64)}}

def exported():
    return torch.export.export(Scaled().eval(), (torch.zeros(3, 16),))

def module():
    return Scaled()

def failing():
    raise KeyError("weights")

def wanting(path):
    return None
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with a module of models, and data for them."""
    (tmp_path / "own_models.py").write_text(SOURCE)
    np.savez(tmp_path / "data.npz", x=normal(4, 3, 16).numpy())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_models", None)


@pytest.mark.parametrize("name", ["pair", "free", "exported"])
def test_a_function_makes_the_model(run: Run, files: Files, here: Path, name: str) -> None:
    """As module and inputs, with dynamic shapes, or exported; what it prints goes to standard error."""
    output = here / "quantized.pt2"
    answer = run(
        *(
            "quantize",
            f"own_models:{name}",
            "--recipe",
            files.recipe,
            "--data",
            here / "data.npz",
            "-o",
            output,
        )
    )
    assert answer.code == 0, answer.err
    assert "imported" not in answer.out
    quantized = tq.load(output).module()
    rows = 7 if name == "free" else 3
    given = {"x": torch.ones(rows, 16)}
    assert (quantized(**given) if name == "free" else quantized(given["x"])).shape == (rows, 8)


def test_other_commands_take_it_as_well(run: Run, files: Files, here: Path) -> None:
    """Explain and compare, of the same model."""
    assert "1 of 1 operator " in run("explain", "own_models:pair", "--recipe", files.recipe).out
    data, output = here / "data.npz", here / "quantized.pt2"
    run("quantize", "own_models:pair", "--recipe", files.recipe, "--data", data, "-o", output)
    assert run("compare", "own_models:pair", output, "--data", data).code == 0


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("own_models:module", 3, ("makes nothing that can be quantized", "own_models.Scaled")),
        ("own_models:failing", 3, ("fails as it is called", "KeyError: 'weights'")),
        ("own_models:wanting", 2, ("cannot be called without arguments", "path")),
        ("own_models:pairs", 2, ("has no 'pairs'", "did you mean 'pair'")),
        ("own_model:pair", 2, ("There is no module 'own_model'",)),
        ("own_models.py:pair", 2, ("write own_models:pair",)),
        ("missing.pt2", 2, ("There is no 'missing.pt2'", "module:function")),
        (".", 2, ("has no config.json",)),
    ],
)
def test_what_is_no_model_is_told(
    run: Run, files: Files, here: Path, name: str, code: int, words: tuple[str, ...]
) -> None:
    """With an exit code of usage where the line is wrong, and of an error where the code is."""
    answer = run("explain", name, "--recipe", files.recipe)
    assert (answer.code, answer.out) == (code, "")
    assert all(word in answer.err for word in words), answer.err


# --- Folders of Hugging Face models -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text encoder, as save_pretrained writes it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    folder = tmp_path_factory.mktemp("encoder")
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_a_folder_is_exported_with_the_first_batch(
    run: Run, files: Files, encoder: Path, tmp_path: Path
) -> None:
    """Its inputs are the arrays of the data, by their names; the head of the architecture is there."""
    data, output = tmp_path / "data.npz", tmp_path / "quantized.pt2"
    ids = np.arange(24).reshape(2, 2, 6) % 32
    np.savez(data, input_ids=ids, attention_mask=np.ones_like(ids))
    answer = run("quantize", encoder, "--recipe", files.recipe, "--data", data, "-o", output)
    assert answer.code == 0, answer.err
    batch = {"input_ids": torch.tensor(ids[0]), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    (scores,) = tq.load(output).module()(**batch)
    assert scores.shape == (2, 2)
    model = transformers.BertForSequenceClassification.from_pretrained(encoder).eval()
    assert torch.allclose(scores, model(**batch).logits, atol=0.05)


def test_a_folder_without_data_is_exported_with_made_up_inputs(
    run: Run, files: Files, encoder: Path, tmp_path: Path
) -> None:
    """It needs no data to explain; of images, the size stands in the configuration."""
    assert run("explain", encoder, "--recipe", files.recipe).code == 0
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    answer = run("explain", tmp_path, "--recipe", files.recipe)
    assert answer.code == 0, answer.err
    assert "XNNPACKQuantizer" in answer.out


def test_a_folder_that_transformers_does_not_read_is_told(run: Run, files: Files, tmp_path: Path) -> None:
    """With its own words, and what to do."""
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    answer = run("explain", tmp_path, "--recipe", files.recipe)
    assert answer.code == 3
    assert "transformers does not read the model" in answer.err
    assert "unheard_of" in answer.err
