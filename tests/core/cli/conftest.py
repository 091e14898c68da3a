"""A model, a recipe and data in files, and the command as a function."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from commands import Answer, Files, Run, Scores, recipe_of
from strategies import export, normal
from torchquilt.cli import main


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files; tests do not write to them."""
    root = tmp_path_factory.mktemp("files")
    found = Files(
        root / "model.pt2", root / "static.toml", root / "dynamic.toml", root / "data.npz", root / "data"
    )
    x, ids = normal(4, 3, 16), torch.arange(12).reshape(4, 3) % 8
    torch.export.save(export(Scores(), x[0], ids[0]), found.model)
    recipe_of("static_int8").save(found.recipe)
    recipe_of("dynamic_int8_per_channel").save(found.dynamic)
    np.savez(found.data, x=x.numpy(), ids=ids.numpy())
    found.folder.mkdir()
    for index in range(4):
        np.savez(found.folder / f"{index}.npz", x=x[index].numpy(), ids=ids[index].numpy())
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which has loaded torch already."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
