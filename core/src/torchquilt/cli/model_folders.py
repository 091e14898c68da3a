"""The folder of a Hugging Face model, as ``save_pretrained`` writes it, exported for the user.

Nothing is fetched, and no code of the folder is run.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from torchquilt.data import first_arrays
from torchquilt.errors import ModelError
from torchquilt.pt2e.export import export_model


def export_folder(folder: Path, data: Path | None) -> ExportedProgram:
    """Load a model and export it, with outputs that are plain tensors and without caches.

    Args:
        folder: has ``config.json`` and the weights.
        data: batches, the first of which it is exported with; its arrays have the names of inputs. Without,
            it is exported with made-up tokens, or an image of the size that the configuration names.

    Raises:
        ModelError: transformers is not installed, does not read the folder, or the model cannot be exported.
        CalibrationError, OSError: the data cannot be read.
    """
    model = _loaded(folder)
    example = _made_up(model, folder) if data is None else _by_name(model, first_arrays(data))
    exported = export_model(model, example)
    assert isinstance(exported, ExportedProgram)  # of a module
    return exported


def _loaded(folder: Path) -> Any:
    if find_spec("transformers") is None:
        raise ModelError(
            "transformers reads the folder of a Hugging Face model, and is not installed.",
            expected="transformers",
            got=f"the folder {folder}",
            remedy="pip install transformers, or export the model yourself: torch.export.save",
        )
    transformers = importlib.import_module("transformers")
    try:
        # Without this answer transformers asks on a terminal whether to run the code of the folder.
        local = {"local_files_only": True, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        names = getattr(config, "architectures", None) or ["AutoModel"]
        model = getattr(transformers, names[0]).from_pretrained(folder, **local)
    except Exception as error:  # whatever transformers raises about a folder
        raise ModelError(
            f"transformers does not read the model in {folder}.",
            expected="a folder as save_pretrained writes it, of an architecture that transformers has",
            got=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            remedy="check the folder; a model with code of its own is given as module:function",
        ) from error
    model.config.use_cache = False
    _return_tensors(model)
    return model


def _return_tensors(model: Any) -> None:
    """Let a model return plain tensors: to load outputs of its own kind, it would have to be imported."""
    forward = model.forward

    @functools.wraps(forward)
    def plain(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        return outputs.to_tuple() if hasattr(outputs, "to_tuple") else outputs

    model.forward = plain


def _by_name(model: Any, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Arrays by the names of the inputs; ``input_0`` is the first."""
    names = [*inspect.signature(model.forward).parameters]
    positions = {f"input_{index}": name for index, name in enumerate(names)}
    return {name if name in names else positions.get(name, name): value for name, value in arrays.items()}


def _made_up(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """A batch of the kind that the model takes first."""
    wanted, config = model.main_input_name, model.config
    if wanted == "input_ids":
        found: dict[str, torch.Tensor] = model.dummy_inputs
        return found
    channels, size = getattr(config, "num_channels", None), getattr(config, "image_size", None)
    if wanted == "pixel_values" and isinstance(channels, int) and isinstance(size, int):
        return {wanted: torch.zeros(1, channels, size, size)}
    raise ModelError(
        f"The model in {folder} has to be exported with a batch, which cannot be made up.",
        expected="inputs of tokens, or images whose size is in the configuration",
        got=f"{type(model).__name__}, whose first input is {wanted}",
        remedy="give --data where the command has it, or a function that returns (model, example_inputs)",
    )
