"""Files that hold the state of a model that is trained."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchquilt._internal.atomic_files import check_is_replaceable, replacing
from torchquilt.errors import ModelError
from torchquilt.pt2e.model_record import stage_of
from torchquilt.pt2e.qat.points import TrainingPoint

#: Keys under which training loops keep the state of the model beside that of the optimizer.
_KEYS = ("model", "state_dict", "model_state_dict")


def save_state(path: str | os.PathLike[str], model: torch.nn.Module, **others: Any) -> None:
    """Save the state of a model that is trained, whole or not at all.

    A process that is killed while it writes leaves the file of the last time as it was.
    ``torch.load(path)["model"]`` is what ``load_state_dict`` takes, and
    ``torchquilt quantize --qat-state`` takes the file.

    Args:
        path: the file.
        model: what :func:`torchquilt.prepare_qat_pt2e` returned, or a module that holds it.
        others: what else to go on from, as ``optimizer=optimizer.state_dict(), epoch=3``.

    Raises:
        ModelError: there is no such model in it.
        OSError: the file cannot be written.
    """
    held = _held_in(model)
    if held is None:
        raise ModelError(
            "Only the state of a model that was prepared for training is saved here.",
            expected="what prepare_qat_pt2e returned",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            remedy="torch.save(model.state_dict(), path) saves that of any other model",
        )
    check_is_replaceable(path)
    buffer = io.BytesIO()
    torch.save({"model": held.state_dict(), **others}, buffer)
    with replacing(path) as file:
        file.write(buffer.getvalue())


def _held_in(model: torch.nn.Module) -> torch.nn.Module | None:
    """The model that is trained in what may be a wrapper of it, or of another wrapper."""
    held: Any = model
    while isinstance(held, torch.nn.Module) and stage_of(held) != "trainable":
        # Of torch.compile; of DistributedDataParallel and AveragedModel.
        held = getattr(held, "_orig_mod", None) or getattr(held, "module", None)
    return held if isinstance(held, torch.nn.Module) else None


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state of a model from a file of :func:`save_state`, or of ``torch.save``.

    Nothing in the file is executed.

    Args:
        path: the state itself, or a dict that has it under ``model``, ``state_dict`` or ``model_state_dict``.

    Raises:
        ModelError: the file has no state of a model that was prepared for training.
        OSError: it cannot be read.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise _not_a_state(path, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    if isinstance(held, Mapping) and not _is_state(held):
        held = next((held[key] for key in _KEYS if key in held and _is_state(held[key])), held)
    if not _is_state(held):
        keys = ", ".join(map(str, [*held][:5])) if isinstance(held, Mapping) else type(held).__name__
        raise _not_a_state(path, keys or "an empty dict")
    return {_without_wrappers(str(name)): value for name, value in held.items()}


def _without_wrappers(name: str) -> str:
    """A name in a state without what ``torch.compile`` and ``DistributedDataParallel`` put before it."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name


def _is_state(held: Any) -> bool:
    return isinstance(held, Mapping) and any(
        str(name).endswith(f".{TrainingPoint.STATE_NAME}") for name in held
    )


def _not_a_state(path: str | os.PathLike[str], got: str) -> ModelError:
    return ModelError(
        f"{Path(path)} holds no state of a model that was prepared for training.",
        expected="torch.save(prepared.state_dict(), path), or a file of torchquilt.qat.save_state",
        got=got,
        remedy="save the state of what prepare_qat_pt2e returned, not that of the float model",
    )


def is_learned(state: Mapping[str, Any]) -> bool:
    """Whether the ranges in a state are learned."""
    switches = (value for name, value in state.items() if name.endswith(f".{TrainingPoint.STATE_NAME}"))
    return any(TrainingPoint.says_learned(value) for value in switches)


def load_state(model: torch.nn.Module, state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Load a state into a model that was prepared anew.

    Raises:
        ModelError: it is the state of another model, or of one that was prepared otherwise.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        lines.sort(key=lambda line: "its range is" not in line)  # which explains names that are missing
        raise ModelError(
            f"{Path(path)} holds the state of another model, or of one that was prepared otherwise.",
            expected="the state of this model, prepared with this recipe",
            got=lines[0][:400] if lines else str(error)[:400],
            remedy="use the program and the recipe that the training was prepared with",
        ) from error
