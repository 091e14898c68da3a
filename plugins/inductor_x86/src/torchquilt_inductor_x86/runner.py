"""Running a package in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import torch

from torchquilt import ProgramError
from torchquilt.backend import RunTimes, StoredFacts, StoredRunner
from torchquilt_inductor_x86.compilation import words
from torchquilt_inductor_x86.packages import StoredPackage
from torchquilt_inductor_x86.signature import laid_out

T = TypeVar("T")

#: The name of the target, in errors.
TARGET = "inductor_x86"


@attrs.frozen
class Failure:
    """Failure of a run.

    Args:
        error: as ``run`` raises it.
        step: the last one that was begun.
    """

    error: ProgramError
    step: str


class InductorRunner(StoredRunner):
    """A stored package and, once it runs, its loaded code. Threads may share it.

    Args:
        buffer: the package.

    Raises:
        ProgramError: it is damaged, or something else.
    """

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        stored = StoredPackage.of(buffer)
        self._served = stored.served
        self._loader: Any = None
        self._lock = threading.Lock()
        facts = StoredFacts(stored.inputs, stored.outputs, stored.operators, structure=stored.structure)
        super().__init__(facts, buffer)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the program; see :class:`torchquilt.backend.Runner`."""
        found = iter(self._called(inputs, lambda loader, given: loader.run(given)))
        return [slot.constant if slot.is_constant else next(found) for slot in self.outputs]

    def profile(self, inputs: Sequence[Any], runs: int) -> Sequence[RunTimes]:
        """Tell how long each kernel takes; see :class:`torchquilt.backend.ProfilingRunner`."""
        from torchquilt_inductor_x86.profiling import profiled

        return self._called(inputs, lambda loader, given: profiled(loader, given, runs, self._served))

    def failure(self, inputs: Sequence[Any]) -> Failure | None:
        """Run it, and tell how it fails; None where it runs.

        Raises:
            ProgramError: it cannot be loaded.
        """
        from torchquilt_inductor_x86.profiling import last_step

        found: list[str] = []

        def call(loader: Any, given: list[Any]) -> list[Any]:
            with last_step(found.append):
                return list(loader.run(given))

        try:
            self._called(inputs, call)
        except ProgramError as error:
            if not found:
                raise
            return Failure(error, found[0])
        return None

    def _called(self, inputs: Sequence[Any], call: Callable[[Any, list[Any]], list[T]]) -> list[T]:
        """Result of a function of the loaded package and the tensors of a call."""
        given = [
            laid_out(value.detach(), slot.dim_order)
            for value, slot in zip(inputs, self.inputs, strict=True)
            if not slot.is_constant and isinstance(value, torch.Tensor)
        ]
        with self._lock, torch.no_grad():
            try:
                if self._loader is None:
                    self._loader = self._load()
                return call(self._loader, given)
            except ProgramError:
                raise
            except Exception as error:  # torch raises RuntimeError for all that fails in C++
                raise ProgramError(
                    "The program failed.",
                    backend=TARGET,
                    got=words(error),
                    remedy="lower it again with the torch that is installed here, without what fails",
                ) from error

    def _load(self) -> Any:
        from torchquilt_inductor_x86.torch_private import load_package

        return load_package(self._buffer)
