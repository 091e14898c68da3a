"""Running a package in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from torchquilt import ProgramError
from torchquilt.backend import StoredFacts, StoredRunner
from torchquilt_inductor_x86.packages import StoredPackage


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
        self._loader: Any = None
        self._lock = threading.Lock()
        facts = StoredFacts(stored.inputs, stored.outputs, stored.operators, structure=stored.structure)
        super().__init__(facts, buffer)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the program; see :class:`torchquilt.backend.Runner`."""
        given = [
            value.detach().contiguous()
            for value, slot in zip(inputs, self.inputs, strict=True)
            if not slot.is_constant and isinstance(value, torch.Tensor)
        ]
        with self._lock, torch.no_grad():
            try:
                if self._loader is None:
                    self._loader = self._load()
                found = iter(self._loader.run(given))
            except ProgramError:
                raise
            except Exception as error:  # torch raises RuntimeError for all that fails in C++
                raise ProgramError(
                    "The program failed.",
                    got=f"{type(error).__name__}: {error}".splitlines()[0],
                    remedy="lower it again with the torch that is installed here, without what fails",
                ) from error
        return [slot.constant if slot.is_constant else next(found) for slot in self.outputs]

    def _load(self) -> Any:
        from torchquilt_inductor_x86.torch_private import load_package

        return load_package(self._buffer)
