"""A calibration in a file, so that one that was cut short goes on where it was, and several become one.

The file holds all that calibration changes: what each observer saw, and the buffers that the model writes to.
It also says what it belongs to (the weights, the graph with its points, the quantizer, the batches), and is
not taken for anything else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch.fx import GraphModule

from torchquilt._internal.atomic_files import check_is_replaceable, replacing
from torchquilt._internal.json_values import from_plain, to_plain
from torchquilt._internal.torch_private import pytree
from torchquilt.errors import CalibrationError
from torchquilt.graph.node_values import attribute
from torchquilt.graph.subgraphs import regions
from torchquilt.graph.tensor_digest import tensor_digest
from torchquilt.pt2e.calibration.convergence import Progress, progress_of, set_progress
from torchquilt.pt2e.model_record import RECORD_KEY, initial_state
from torchquilt.pt2e.observer_points import ObservedPoint, observed_points

#: Version of the layout of the file.
SCHEMA = 2

#: Seconds between two writes of the file.
INTERVAL = 10.0

_PLAIN = (torch.Tensor, bool, int, float, str, type(None))


@attrs.frozen
class Seen:
    """The batches that a calibration has seen, in their order.

    Args:
        batches: how many.
        digest: SHA-256 over all of them; empty where there were none.
    """

    batches: int = 0
    digest: str = ""

    def and_then(self, batch: object) -> Seen:
        """These batches and one more."""
        leaves, structure = pytree.tree_flatten(batch)
        parts = [self.digest, str(structure), *map(leaf_text, leaves)]
        return Seen(self.batches + 1, digest(parts))


class Checkpoint:
    """The state of one calibration in a file, which is replaced as a whole or not at all.

    Args:
        prepared: what :func:`torchquilt.prepare_pt2e` returned. All of its weights are read once.
        path: the file; it need not be there yet.

    Raises:
        OSError: something else than a file has that name.
    """

    def __init__(self, prepared: GraphModule, path: str | os.PathLike[str]) -> None:
        check_is_replaceable(path)
        self.path = Path(path)
        self._prepared = prepared
        self._points = observed_points(prepared)
        self._identity = identity_of(prepared)
        self._state: dict[str, dict[str, Any]] = {"observers": {}, "buffers": {}, "progress": {}}
        self._saved: tuple[Seen, bool] | None = None
        self._saved_at = 0.0

    def open(self) -> Seen:
        """Say what the calibration in the file has seen; :meth:`restore` brings the model to its state.

        Where there is no file, one is written: a path that cannot be written to shows before there is
        something to lose, and a model that was interrupted within its first batch can be brought back.

        Raises:
            CalibrationError: the file is no checkpoint, or that of another model, quantizer or observer.
            OSError: it cannot be read or written.
        """
        if not self.path.exists():
            self.save(Seen())
        data = load_checkpoint(self.path)
        check_identity(
            f"{self.path} is the checkpoint of another calibration", self._identity, data["identity"]
        )
        self._state = data["state"]
        seen = Seen(data["batches"], data["digest"])
        self._saved, self._saved_at = (seen, data["is_complete"]), time.monotonic()
        if seen.batches == 0:
            self.restore()
        return seen

    def restore(self) -> None:
        """Bring the model to the state that the file had when it was opened."""
        for name, seen in self._state["observers"].items():
            point = self._points[name]
            point.observer = type(point.observer).from_state(point.observer.spec, seen)
        with torch.no_grad():
            for name, value in self._state["buffers"].items():
                attribute(self._prepared, name).copy_(value)
        set_progress(self._prepared, from_plain(Progress, self._state["progress"]))

    def save_now_and_then(self, seen: Seen) -> None:
        """Write the file, unless that was done within the last :data:`INTERVAL` seconds."""
        if time.monotonic() - self._saved_at >= INTERVAL:
            self.save(seen)

    def save(self, seen: Seen, *, is_complete: bool = False) -> None:
        """Write the state of the model to the file, if it is not there already.

        Args:
            seen: the batches that brought the model to this state.
            is_complete: whether there are no more.

        Raises:
            CalibrationError: an observer keeps something that is not plain data.
            OSError: the file cannot be written; what was there before is as it was.
        """
        if self._saved == (seen, is_complete):
            return
        observers = {name: point.observer.state() for name, point in self._points.items()}
        for name, state in observers.items():
            _check_is_plain(state, self._points[name])
        buffers = {name: attribute(self._prepared, name) for name in initial_state(self._prepared)}
        progress = to_plain(progress_of(self._prepared))
        content = io.BytesIO()
        torch.save(
            {
                "torchquilt_checkpoint": SCHEMA,
                "identity": self._identity,
                **attrs.asdict(seen),
                "is_complete": is_complete,
                "state": {"observers": observers, "buffers": buffers, "progress": progress},
            },
            content,
        )
        with replacing(self.path) as file:
            file.write(content.getbuffer())
        self._saved, self._saved_at = (seen, is_complete), time.monotonic()


def check_identity(problem: str, expected: Mapping[str, str], got: Mapping[str, str]) -> None:
    """Refuse a state of something else.

    Args:
        problem: the beginning of a sentence that says what it is the state of.
        expected: what :func:`identity_of` says of the model here.
        got: what was said of the model that it is of.

    Raises:
        CalibrationError: they differ; says in what.
    """
    different = [what for what, value in expected.items() if got.get(what) != value]
    if different:
        first = different[0]
        raise CalibrationError(
            f"{problem}, with other {', '.join(different)}.",
            expected=f"{first}: {expected[first]}",
            got=f"{first}: {got.get(first)}",
            remedy="go on with the model, quantizer and observers that it was made with, or "
            "remove the file to begin anew",
        )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CalibrationError: the file is none, or of another version.
        OSError: it cannot be read.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        # Only plain data: a pickle that would run code is refused.
        data = torch.load(content, weights_only=True)
        schema = data["torchquilt_checkpoint"]
    except Exception as error:  # for something else torch raises what it likes, OSErrors, too
        raise CalibrationError(
            f"{path} is no checkpoint of a calibration.",
            expected="a file that calibrate(..., checkpoint=path) wrote",
            got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            remedy="name another file, or remove this one to begin anew",
        ) from error
    if schema != SCHEMA:
        raise CalibrationError(
            f"{path} was written by another torchquilt.",
            expected=f"a checkpoint of schema {SCHEMA}",
            got=f"schema {schema}",
            remedy="go on with the torchquilt that wrote it, or remove the file to begin anew",
        )
    found: dict[str, Any] = data
    return found


def identity_of(prepared: GraphModule) -> dict[str, str]:
    """Identity of the state of a prepared model: texts that are equal where it depends on the same things."""
    points = observed_points(prepared)
    parts = regions(prepared)
    graph = [f"{part.path}: {node.format_node()}" for part in parts for node in part.module.graph.nodes]
    observers = [
        f"{name} at {point.names}: {_class_name(point.observer)} {point.observer.settings()} "
        f"{point.observer.spec!r}"
        for name, point in points.items()
    ]
    return {
        "quantizer": str(prepared.meta[RECORD_KEY]["quantizer"]),
        "weights": digest(_weights(prepared)),
        "observers": digest(observers),
        "graph": digest(graph),
    }


def _weights(prepared: GraphModule) -> list[str]:
    """Each stored tensor that the graphs read; those that they write to as they were in the beginning."""
    before = initial_state(prepared)
    found = {}
    for region in regions(prepared):
        for node in region.module.graph.find_nodes(op="get_attr"):
            name = f"{region.path}.{node.target}" if region.path else str(node.target)
            value = before.get(name, attribute(prepared, name))
            if isinstance(value, torch.Tensor) and name not in found:
                found[name] = f"{name}: {leaf_text(value)}"
    return sorted(found.values())


def leaf_text(value: object) -> str:
    """A text that is equal for equal tensors, numbers and texts."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{list(value.shape)} {tensor_digest(value)}"
    return repr(value)


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order."""
    return hashlib.sha256(json.dumps([*texts]).encode()).hexdigest()


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_is_plain(value: object, point: ObservedPoint) -> None:
    """Refuse what could be written and not be read again, before anything is written."""
    if isinstance(value, Mapping):
        items = [*value, *value.values()]
    elif isinstance(value, (list, tuple, set)):
        items = [*value]
    elif type(value) in _PLAIN:
        return
    else:
        raise CalibrationError(
            "The state of this observer cannot be kept in a file.",
            node=", ".join(point.names),
            expected="tensors, numbers and texts, in lists and dicts",
            got=f"{_class_name(value)} in the state of {_class_name(point.observer)}",
            remedy="let its state() and from_state() use plain values",
        )
    for item in items:
        _check_is_plain(item, point)
