"""Global state of a process, kept from a model that goes through the flow, and the other way round.

Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Devices that may be set to cast by themselves. To ask about one that is not there costs nothing.
_DEVICES = ("cpu", "cuda", "hpu", "mps", "mtia", "xla", "xpu")


class _Float32ByDefault:
    """The default dtype of a process: float32 from the first thread that enters to the last that leaves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: torch.dtype | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Run a block with float32 as the default dtype."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        import torch

        with self._lock:
            if not self._inside and torch.get_default_dtype() is not torch.float32:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._inside += 1

    def _leave(self) -> None:
        import torch

        with self._lock:
            self._inside -= 1
            if not self._inside and self._before is not None:
                torch.set_default_dtype(self._before)
                self._before = None


_FLOAT32_BY_DEFAULT = _Float32ByDefault()


@contextlib.contextmanager
def default_global_state() -> Iterator[None]:
    """Run a block with torch's own defaults, and then set what the program had set.

    A default dtype or device, autocast, and the modes of autograd would otherwise get into tensors that the
    flow makes and into graphs that it traces. Flags that make algorithms deterministic, and the number of
    threads, stay: no result of ours depends on them.

    The default dtype is that of the process, so other threads see float32 in the meantime, until the last
    thread has left such a block; the rest is each thread's own.
    """
    import torch

    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        for device in _DEVICES:
            if torch.is_autocast_enabled(device):
                torch.set_autocast_enabled(device, False)
                stack.callback(torch.set_autocast_enabled, device, True)
        stack.enter_context(_FLOAT32_BY_DEFAULT.kept())
        yield


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Run a block that may draw random numbers, and then let the program draw what it would without it.

    For what runs code of others, such as a runtime's compiler or a user's quantizer. Some of it draws once in
    a process, on first use, and what a program draws behind it would depend on what was called before. Kept
    are the numbers of torch on the processor, of Python and of NumPy.
    """
    import torch

    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng([]):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(arrays)


@contextlib.contextmanager
def global_state_kept() -> Iterator[None]:
    """Run a block with torch's defaults; settings and random numbers of the program stay as they were."""
    with default_global_state(), random_numbers_kept():
        yield
