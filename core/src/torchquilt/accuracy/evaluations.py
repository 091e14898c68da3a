"""Evaluations: the metric of many variants of a model, each once, over ranks, kept in a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from torchquilt._internal.atomic_files import replacing
from torchquilt.accuracy.metric import Metric
from torchquilt.errors import AccuracyError
from torchquilt.pt2e.calibration.checkpoint import digest, identity_of, leaf_text
from torchquilt.pt2e.observer_points import observed_points

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SCHEMA = 1


class Evaluations:
    """Values by the key of what they are of.

    Args:
        path: a JSON file that has them, which is read now and written after each one; None for no file.
        identity: what the values depend on besides their keys, as texts.
        group: a process group; each rank computes its part of the values, and all of them get all.

    Raises:
        AccuracyError: the file is that of something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        identity: Mapping[str, str],
        group: ProcessGroup | None = None,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._identity = dict(identity)
        self._group = group
        self.values: dict[str, float] = {}
        #: how many were computed here, and not read
        self.computed = 0
        if self._path is not None:
            self.values = self._read_together(self._path)

    @property
    def ranks(self) -> int:
        """Number of values that are computed at the same time."""
        if self._group is None:
            return 1
        import torch.distributed as dist

        return dist.get_world_size(self._group)

    def get(self, wanted: Mapping[str, Callable[[], float]]) -> list[float]:
        """Values for keys, in order; those that are not known are computed.

        Args:
            wanted: key → what computes its value.

        Raises:
            AccuracyError: one of them failed, on this rank or another.
        """
        missing = [key for key in wanted if key not in self.values]
        if self._group is None:
            for key in missing:
                self._take({key: wanted[key]()})
                self.computed += 1
        elif missing:
            self._take(self._on_all_ranks(missing, wanted))
        return [self.values[key] for key in wanted]

    def _on_all_ranks(
        self, missing: Sequence[str], wanted: Mapping[str, Callable[[], float]]
    ) -> dict[str, float]:
        import torch.distributed as dist

        rank, size = dist.get_rank(self._group), dist.get_world_size(self._group)
        here: dict[str, float] = {}
        failure: str | None = None
        try:
            for key in missing[rank::size]:
                here[key] = wanted[key]()
                self.computed += 1
        except Exception as error:
            failure = f"rank {rank}: {type(error).__name__}: {error}"
        reports: list[Any] = [None] * size
        dist.all_gather_object(reports, (here, failure), group=self._group)
        found = {key: value for values, _ in reports for key, value in values.items()}
        self._take({key: found[key] for key in missing if key in found})
        failed = [text for _, text in reports if text]
        if failed:
            raise AccuracyError(
                "A rank failed, so all of them stop.",
                expected=f"values of {len(missing)} models",
                got="; ".join(failed),
                remedy="see the cause; what was evaluated is kept where a state file is named",
            )
        return {key: found[key] for key in missing}

    def _take(self, found: Mapping[str, float]) -> None:
        self.values.update(found)
        if self._path is None or not found or not self._is_first():
            return
        document = {"schema": _SCHEMA, "identity": self._identity, "values": self.values}
        with replacing(self._path) as file:
            file.write(json.dumps(document, indent=1).encode())

    def _is_first(self) -> bool:
        import torch.distributed as dist

        return self._group is None or dist.get_rank(self._group) == 0

    def _read_together(self, path: Path) -> dict[str, float]:
        """Values of the file as the first rank reads it: others may see another one, or read it later."""
        if self._group is None:
            return _read(path, self._identity)
        import torch.distributed as dist

        said: list[Any] = [None]
        if self._is_first():
            try:
                said = [_read(path, self._identity)]
            except (AccuracyError, OSError) as error:
                said = [error]
        dist.broadcast_object_list(said, group=self._group, group_src=0)
        (found,) = said
        if isinstance(found, Exception):
            raise found
        values: dict[str, float] = found
        return values


def identity_of_metrics(prepared: GraphModule, metric: Metric) -> dict[str, str]:
    """Identity of the metrics of variants: texts that are equal where they depend on the same things.

    Args:
        prepared: the calibrated model as the user's quantizer decides.
        metric: by which they are judged.
    """
    ranges = [
        f"{name} {key}: {leaf_text(value)}"
        for name, point in observed_points(prepared).items()
        for key, value in sorted(point.observer.state().items())
    ]
    return {**identity_of(prepared), "calibration": digest(ranges), "evaluate": metric.name}


def check_state(path: str | os.PathLike[str] | None) -> None:
    """Refuse a file that is no state, before anything is computed.

    Raises:
        AccuracyError: it has something else in it.
    """
    if path is not None and Path(path).exists():
        _stored(Path(path))


def _stored(path: Path) -> tuple[dict[str, str], dict[str, float]]:
    """Identity and values of a state file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema, identity = document["schema"], dict(document["identity"])
        values = {str(key): float(value) for key, value in document["values"].items()}
        if any(map(math.isnan, values.values())):
            raise ValueError("a metric is not a number")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AccuracyError(
            f"{path} is no state of a search or a sensitivity.",
            got=f"{type(error).__name__}: {error}",
            remedy="name another file, or remove it to begin anew",
        ) from error
    if schema != _SCHEMA:
        raise AccuracyError(
            f"{path} is the state of something else: its schema differs.",
            expected=f"schema {_SCHEMA}",
            got=f"schema {schema}",
            remedy="go on with what it was made with, or name another file",
        )
    return identity, values


def _read(path: Path, identity: Mapping[str, str]) -> dict[str, float]:
    """The values of a state file, which has to be that of the same; none where there is no file."""
    if not path.exists():
        return {}
    stored, values = _stored(path)
    for name in {**identity, **stored}:
        if identity.get(name) != stored.get(name):
            raise AccuracyError(
                f"{path} is the state of something else: its {name} differs.",
                expected=identity.get(name),
                got=stored.get(name),
                remedy="go on with what it was made with, or name another file",
            )
    return values
