"""Times of the kernels of a package, from torch's profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from torchquilt.backend import KernelTime, RunTimes
from torchquilt_inductor_x86.generated import numbered
from torchquilt_inductor_x86.torch_private import kernel_of_event

_RUN = "torchquilt: a run"
_MICRO = 1e-6


def profiled(loader: Any, inputs: Sequence[Any], runs: int, served: Mapping[str, str]) -> list[RunTimes]:
    """Run a package so many times, after a run that is not measured.

    Args:
        loader: of the package.
        inputs: tensors.
        runs: their number.
        served: a step that only quantizes and dequantizes → the step that reads what it returns.
    """
    loader.run([*inputs])
    with profile(activities=[ProfilerActivity.CPU]) as measured:
        for _ in range(runs):
            with record_function(_RUN):
                loader.run([*inputs])
    events = _events_of(measured)
    within: dict[int, list[Any]] = defaultdict(list)
    for event in events:
        if event.cpu_parent is not None and event.cpu_parent.name == _RUN:
            within[event.cpu_parent.id].append(event)
    return [_times(event, within[event.id], served) for event in events if event.name == _RUN]


def _events_of(measured: Any) -> list[Any]:
    return [*(measured.events() or ())]


@contextmanager
def last_step(tell: Callable[[str], object]) -> Iterator[None]:
    """Tell the step that was begun last in a block, ``""`` if none was."""
    measured = profile(activities=[ProfilerActivity.CPU])
    try:
        with measured:
            yield
    finally:
        events = [one for one in _events_of(measured) if one.cpu_parent is None]
        names = [kernel_of_event(one.name) for one in sorted(events, key=lambda one: one.time_range.start)]
        tell(["", *numbered(names)][-1])


def _times(run: Any, kernels: Sequence[Any], served: Mapping[str, str]) -> RunTimes:
    in_order = sorted(kernels, key=lambda one: float(one.time_range.start))
    names = [kernel_of_event(one.name) for one in in_order]
    return RunTimes(
        _MICRO * run.time_range.elapsed_us(),
        tuple(
            KernelTime(name, _MICRO * one.time_range.elapsed_us(), served.get(step, step))
            for name, step, one in zip(names, numbered(names), in_order, strict=True)
        ),
    )
