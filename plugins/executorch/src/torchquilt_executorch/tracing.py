"""Events that the runtime records while it runs a program: times of kernels, and what they return."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from torchquilt.backend import KernelTime, RunTimes
from torchquilt_executorch.steps import name_of
from torchquilt_executorch.stored import METHOD

#: The runtime counts nanoseconds on a host.
_SECONDS = 1e-9
_WHOLE = "Method::execute"
_DELEGATE_CALL = "DELEGATE_CALL"
_KERNEL = "native_call_"
#: Chains are numbered from 0; what belongs to no instruction has a number that is none.
_NOWHERE = 1 << 32


@attrs.frozen(eq=False)
class Trace:
    """Events of some runs.

    Args:
        runs: the events of each run.
        values: the recorded tensors.
    """

    runs: tuple[Sequence[Any], ...]
    values: bytearray

    def times(self) -> list[RunTimes]:
        """Times of each run."""
        return [_times([one.profile_event for one in run if one.profile_event]) for run in self.runs]

    def recorded(self) -> dict[str, list[Any]]:
        """Values of the last run: step → what it returns; of a delegate, what it reads and then that."""
        found: dict[str, list[Any]] = {}
        for event in self.runs[-1]:
            debug = event.debug_event
            if debug is not None and debug.chain_index < _NOWHERE:
                step = name_of(debug.chain_index, debug.instruction_id)
                found.setdefault(step, []).append(self._tensor(debug.debug_entry))
        return found

    def _tensor(self, entry: Any) -> Any:
        """A recorded tensor, None for what is none."""
        from executorch.devtools.inspector._inspector_utils import inflate_runtime_output

        return inflate_runtime_output(entry, self.values).clone() if entry.tensor is not None else None


def traced(buffer: bytes, inputs: Sequence[Any], runs: int, room: int = 0) -> Trace:
    """Run a program with its events recorded.

    Args:
        buffer: the program.
        inputs: as the runtime takes them.
        runs: so many, of which the last ones are kept where there is room for values.
        room: bytes for the values of all runs, 0 to record none.
    """
    from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc
    from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer

    program = _load_for_executorch_from_buffer(buffer, enable_etdump=True, debug_buffer_size=room)
    for _ in range(runs):
        program.run_method(METHOD, tuple(inputs))
    with tempfile.TemporaryDirectory() as folder:
        dump, values = Path(folder) / "events", Path(folder) / "values"
        program.write_etdump_result_to_file(str(dump), str(values))
        recorded = deserialize_from_etdump_flatcc(dump.read_bytes())
        tensors = bytearray(values.read_bytes() if room else b"")  # torch reads it as memory of its own
    events = (run.events for run in recorded.run_data)
    return Trace(tuple(run for run in events if any(map(_is_whole, run))), tensors)


def _is_whole(event: Any) -> bool:
    """Whether an event is that of a whole run; loading is recorded as well."""
    return event.profile_event is not None and event.profile_event.name == _WHOLE


def _times(events: Sequence[Any]) -> RunTimes:
    whole = next(event for event in events if event.name == _WHOLE)
    return RunTimes(_seconds(whole), tuple(_kernels(events)))


def _kernels(events: Sequence[Any]) -> Iterator[KernelTime]:
    """The kernels of a run. What a delegate takes beside its kernels is a kernel of its own."""
    inside: dict[str, float] = {}
    for event in events:
        if event.chain_index < 0:
            continue
        step = name_of(event.chain_index, event.instruction_id)
        if event.name is None:
            inside[step] = inside.get(step, 0.0) + _seconds(event)
            yield KernelTime(str(event.delegate_debug_id_str), _seconds(event), step)
        elif event.name.startswith(_KERNEL):
            yield KernelTime(event.name.removeprefix(_KERNEL), _seconds(event), step)
        elif event.name == _DELEGATE_CALL:
            yield KernelTime("call of the delegate", max(0.0, _seconds(event) - inside.pop(step, 0.0)), step)


def _seconds(event: Any) -> float:
    return _SECONDS * float(event.end_time - event.start_time)
