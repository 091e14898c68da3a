"""Profile of a lowered program: time of each kernel, joined with the operators of the model.

Importing this module does not import torch.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt._internal.json_values import from_document, from_plain, parsed, to_plain
from torchquilt._internal.text_tables import Printed, counted, few
from torchquilt.errors import ProgramError
from torchquilt.lowering.target import KernelTime, ProfilingRunner, RunTimes

if TYPE_CHECKING:
    from torchquilt.lowering.program_facts import LoweredOperation

#: Version of the JSON of a profile.
JSON_SCHEMA = 1
_PRINTED = 20
_MOST_NODES = 3
_MILLI = 1e3


@attrs.frozen
class ProfiledKernel:
    """Time of one kernel.

    Args:
        kernel: what the runtime calls it.
        seconds: the median of all runs.
        share: of the time of all kernels.
        nodes: the nodes of the model that its step computes, several where they are fused, or where the
            runtime tells kernels of a delegate and not which operator each one computes.
        ops: their overloads in the program.
        module: path of the module that all of them are in.
        delegate: the delegate that runs it, empty where the runtime itself does.
        arithmetic: ``"integer"``, ``"float"``, ``"mixed"`` where its step has both; empty for one without
            a node of the model.
    """

    kernel: str
    seconds: float
    share: float
    nodes: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    module: str = ""
    delegate: str = ""
    arithmetic: str = ""

    def __str__(self) -> str:
        nodes = few(self.nodes, _MOST_NODES) or "no operator of the model"
        return f"{_MILLI * self.seconds:.3f} ms ({self.share:.0%}) {self.kernel}: {nodes}"


@attrs.frozen(repr=False)
class Profile:
    """Time of a program by kernel. Made by :meth:`torchquilt.LoweredProgram.profile`.

    Args:
        target: the runtime.
        kernels: the longest first.
        seconds: of a whole run, the median.
        runs: so many were measured.
    """

    target: str
    kernels: tuple[ProfiledKernel, ...]
    seconds: float
    runs: int

    @property
    def attributed(self) -> float:
        """Share of the time of all kernels that has a node of the model."""
        return sum(one.share for one in self.kernels if one.nodes)

    @property
    def integer_share(self) -> float:
        """Share of the time of all kernels that compute with integers."""
        return sum(one.share for one in self.kernels if one.arithmetic == "integer")

    def by_node(self) -> dict[str, float]:
        """Seconds of each node of the model. Nodes that one step computes together share its time equally."""
        found: dict[str, float] = defaultdict(float)
        for one in self.kernels:
            for node in one.nodes:
                found[node] += one.seconds / len(one.nodes)
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))

    def to_json(self) -> str:
        """The profile as JSON text, with a schema version."""
        return json.dumps({"schema": JSON_SCHEMA, **to_plain(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """The inverse of :meth:`to_json`.

        Raises:
            ProgramError: the text is no profile, or one of another schema version.
        """
        what = "a profile"
        return from_document(parsed(text, what, ProgramError), JSON_SCHEMA, what, ProgramError, _profile_from)

    def printed(self, top: int = _PRINTED) -> Printed:
        """The profile as text.

        Args:
            top: so many kernels.
        """
        whole = f"{_MILLI * self.seconds:.3f} ms a run (median of {self.runs})"
        shares = f"{self.attributed:.0%} in operators of the model, {self.integer_share:.0%} in integers"
        rest = self.kernels[top:]
        more = f"… and {counted(len(rest), 'kernel')} of {sum(one.share for one in rest):.1%}"
        return Printed(
            [f"{self.target}: {whole}; of the time in kernels {shares}", ""],
            [_HEADER, *map(_line, self.kernels[:top])],
            [more] if rest else [],
        )

    def __str__(self) -> str:
        return str(self.printed())

    def __repr__(self) -> str:
        return f"<Profile of {self.target}: {_MILLI * self.seconds:.3f} ms a run; print it for more>"


_HEADER = ("ms", "share", "kernel", "computes in", "nodes of the model", "module")


def _line(one: ProfiledKernel) -> tuple[str, ...]:
    return (
        f"{_MILLI * one.seconds:.3f}",
        f"{one.share:.1%}",
        one.kernel,
        one.arithmetic,
        few(one.nodes, _MOST_NODES),
        one.module,
    )


def _profile_from(data: dict[str, Any]) -> Profile:
    return from_plain(Profile, data)


def profiled(
    target: str,
    operations: Sequence[LoweredOperation],
    runner: ProfilingRunner,
    inputs: Sequence[Any],
    runs: int,
) -> Profile:
    """The profile of a program.

    Args:
        target: the name of its target.
        operations: all of it.
        runner: of it.
        inputs: as the runtime takes them.
        runs: so many.

    Raises:
        ProgramError: there is no run to measure, or it fails.
    """
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise ProgramError(
            "A profile needs a run.",
            expected="a number of runs from 1",
            got=f"runs={runs!r}",
            remedy="leave it out for 20",
        )
    measured = runner.profile(inputs, runs)
    steps: dict[str, list[LoweredOperation]] = defaultdict(list)
    for operation in operations:
        steps[operation.step].append(operation)
    times = list(_medians(measured))
    whole = sum(time.seconds for time in times) or 1.0
    kernels = (_kernel(one, steps[one.step] if one.step else [], whole) for one in times)
    return Profile(
        target,
        tuple(sorted(kernels, key=lambda one: -one.seconds)),
        statistics.median(run.seconds for run in measured),
        len(measured),
    )


def _medians(measured: Sequence[RunTimes]) -> Iterator[KernelTime]:
    """The median of each kernel; the same one may run several times in a run."""
    found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for run in measured:
        seen: dict[tuple[str, str], int] = defaultdict(int)
        for one in run.kernels:
            key = one.step, one.kernel
            found[(*key, seen[key])].append(one.seconds)
            seen[key] += 1
    for (step, kernel, _), seconds in found.items():
        yield KernelTime(kernel, statistics.median(seconds), step)


def _kernel(time: KernelTime, operations: Sequence[LoweredOperation], whole: float) -> ProfiledKernel:
    kinds = {one.arithmetic for one in operations}
    return ProfiledKernel(
        kernel=time.kernel,
        seconds=time.seconds,
        share=time.seconds / whole,
        nodes=tuple(dict.fromkeys(one.node for one in operations if one.node)),
        ops=tuple(dict.fromkeys(one.op for one in operations)),
        module=_common_module([one.module for one in operations]),
        delegate=next((one.delegate for one in operations if one.delegate), ""),
        arithmetic="mixed" if len(kinds) > 1 else next(iter(kinds), ""),
    )


def _common_module(paths: Sequence[str]) -> str:
    """The module that all of these are in."""
    split = [path.split(".") for path in paths]
    common = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)
