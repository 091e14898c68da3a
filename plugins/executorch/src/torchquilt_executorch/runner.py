"""Running a stored program in this process, with what the runtime would end the process for told before."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torchquilt import MissingRuntimeError, ProgramError
from torchquilt.backend import RunTimes, Slot, StoredFacts, StoredRunner
from torchquilt_executorch.known_noise import without_known_lines, without_known_records
from torchquilt_executorch.stored import METHOD, StoredProgram
from torchquilt_executorch.tracing import Trace, traced

#: The only dimension order beside the contiguous one that the runtime's Python binding takes.
_CHANNELS_LAST = (0, 2, 3, 1)
#: Held while the runtime loads or runs something, in the whole process. Its binding sends what the runtime
#: prints to Python's streams, for which it lets go of the interpreter in the middle; a second thread that
#: enters then waits forever. It keeps the interpreter for the rest of the call, so the lock takes no time.
_RUNTIME = threading.RLock()
_MOST_REASONS = 3
#: Room for recorded values: so many times the memory of all tensors, and some for small programs.
_ROOM, _SLACK = 4, 1 << 20
#: The names of executorch/runtime/core/error.h.
_ERRORS = {
    0x01: "Internal",
    0x02: "InvalidState",
    0x03: "EndOfMethod",
    0x10: "NotSupported",
    0x11: "NotImplemented",
    0x12: "InvalidArgument",
    0x13: "InvalidType",
    0x14: "OperatorMissing",
    0x20: "NotFound",
    0x21: "MemoryAllocationFailed",
    0x22: "AccessFailed",
    0x23: "InvalidProgram",
    0x24: "InvalidExternalData",
    0x25: "OutOfResources",
    0x30: "DelegateInvalidCompatibility",
    0x31: "DelegateMemoryAllocationFailed",
    0x32: "DelegateInvalidHandle",
}


class ExecuTorchRunner(StoredRunner):
    """A stored program and, once it runs, what the runtime made of it. Threads may share it.

    Args:
        buffer: the program.
        libraries: modules that may have kernels that it needs; imported if it needs some.

    Raises:
        ProgramError: the program is damaged, or something else.
    """

    def __init__(self, buffer: bytes, libraries: Sequence[str] = ()) -> None:
        # The runtime reads from this memory for as long as it has the program, and does not keep it itself.
        self._buffer = buffer
        self._libraries = tuple(libraries)
        self._stored = stored = StoredProgram.of(buffer)
        self._method: Any = None
        facts = StoredFacts(
            stored.inputs, stored.outputs, stored.operators, stored.delegates, stored.structure
        )
        super().__init__(facts, buffer, self._libraries)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the program; see :class:`torchquilt.backend.Runner`."""
        given = self._given(inputs)
        with _RUNTIME:
            if self._method is None:
                self._method = self._load()
            method = self._method
            try:
                return list(method.execute(given))
            except Exception as error:  # the runtime raises RuntimeError with a number
                told = _told_by(lambda: method.execute(given))
                raise self._failed("The program failed in the runtime.", error, told) from error

    def profile(self, inputs: Sequence[Any], runs: int) -> list[RunTimes]:
        """Run it, and tell times; see :class:`torchquilt.backend.ProfilingRunner`."""
        return self._traced(inputs, runs + 1).times()[1:]

    def values(self, inputs: Sequence[Any]) -> dict[tuple[str, int], Any]:
        """Run it, and tell what steps return; see :class:`torchquilt.backend.ObservableRunner`."""
        recorded = self._traced(inputs, 1, _ROOM * self._stored.nbytes + _SLACK).recorded()
        import torch

        return {
            (step, number): value
            for step, values in recorded.items()
            for number, value in enumerate(values)
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }

    def _traced(self, inputs: Sequence[Any], runs: int, room: int = 0) -> Trace:
        self.run(inputs)  # so that what is wrong with the program is told, and its kernels are here
        try:
            with _RUNTIME, without_known_lines(), without_known_records():
                return traced(self._buffer, self._given(inputs), runs, room)
        except Exception as error:  # the runtime raises RuntimeError with a number
            raise self._failed("The program cannot be traced.", error, "") from error

    def _given(self, inputs: Sequence[Any]) -> list[Any]:
        return [_as_stored(value, slot) for value, slot in zip(inputs, self.inputs, strict=True)]

    def _load(self) -> Any:
        """The method that runs, in a runtime that has what it needs."""
        with without_known_records():  # that its interface may change is one
            from executorch.runtime import Runtime

            runtime = Runtime.get()
        self._stored.check_is_harmless()
        self._check_delegates(runtime.backend_registry.registered_backend_names)
        self._find_kernels(runtime)

        def load() -> Any:
            return runtime.load_program(self._buffer).load_method(METHOD)

        try:
            with without_known_lines():
                return load()
        except Exception as error:  # likewise
            raise self._failed("The runtime cannot load the program.", error, _told_by(load)) from error

    def _check_delegates(self, present: Sequence[str]) -> None:
        missing = [name for name in dict.fromkeys(self.delegates) if name not in present]
        if missing:
            raise MissingRuntimeError(
                f"The runtime here has no delegate {missing[0]!r}.",
                backend=", ".join(missing),
                expected=f"one of: {', '.join(sorted(present)) or 'none'}",
                got=", ".join(missing),
                remedy="run it on a device, or install an ExecuTorch that was built with the delegate",
            )

    def _find_kernels(self, runtime: Any) -> None:
        """Load libraries until all kernels are there.

        Raises:
            ProgramError: one is not in any of them. The runtime would only give the number of an error.
        """
        failures = []
        for library in ("", *self._libraries):
            try:
                if library:
                    importlib.import_module(library)
            except Exception as error:  # it loads code of C++, which fails in any way it likes
                failures.append(f"{library}: {type(error).__name__}: {error}")
            missing = [
                name for name in self.operators if name not in runtime.operator_registry.operator_names
            ]
            if not missing:
                return
        searched = ", ".join(self._libraries) or "none"
        raise MissingRuntimeError(
            f"The runtime here has no kernel for {', '.join(missing)}.",
            expected=f"kernels in the runtime itself or in one of the libraries: {searched}",
            operators=tuple(missing),
            got="; ".join(failures) or "a runtime without them",
            remedy="import the module that registers them before the program is run, or install the backend "
            "that the program was lowered with",
        )

    def _failed(self, problem: str, error: Exception, told: str) -> ProgramError:
        """The error for one of the runtime, with what it writes of it beside a number."""
        text = str(error)
        number = re.search(r"0x:?([0-9a-fA-F]+)", text)
        name = _ERRORS.get(int(number[1], 16), "") if number else ""
        kernel = re.search(r"in operator (\S+): 0x", told)
        delegates = [one for one in dict.fromkeys(self.delegates) if one in told]
        if not delegates and name.startswith("Delegate"):
            delegates = [*dict.fromkeys(self.delegates)]
        lines = [re.sub(r"^\[.*?\] ", "", line) for line in told.splitlines()]
        reasons = [line for line in lines if re.search(r"fail|invalid|error|mismatch", line, re.IGNORECASE)]
        return ProgramError(
            problem,
            backend=", ".join(delegates) or None,
            operators=(kernel[1],) if kernel else (),
            got="; ".join([f"{text} ({name})" if name else text, *reasons[:_MOST_REASONS]]),
            remedy="lower it again with the ExecuTorch that is installed here, without what fails",
        )


def _as_stored(value: Any, slot: Slot) -> Any:
    """An input in the order in memory that the program has it in: the runtime reads it as it lies there."""
    import torch

    if slot.is_constant:
        return slot.constant  # a text has been checked, and is None here
    if not isinstance(value, torch.Tensor):
        return value
    is_channels_last = slot.dim_order == _CHANNELS_LAST
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    return value.detach().contiguous(memory_format=layout)


def _told_by(action: Callable[[], object]) -> str:
    """Lines that the runtime writes to standard error while an action fails that has failed before."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.suppress(Exception):
        action()
    return told.getvalue()
