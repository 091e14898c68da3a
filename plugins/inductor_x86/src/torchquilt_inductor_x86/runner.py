"""Running a package in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from torchquilt import ProgramError
from torchquilt.backend import Slot
from torchquilt_inductor_x86.packages import StoredPackage


class InductorRunner:
    """A stored package and, once it runs, its loaded code. Threads may share it.

    A copy, or one that was pickled, is the same program in its first state.

    Args:
        buffer: the package.

    Raises:
        ProgramError: it is damaged, or something else.
    """

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self._stored = StoredPackage.of(buffer)
        self._loader: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[InductorRunner], tuple[bytes]]:
        return type(self), (self._buffer,)

    @property
    def inputs(self) -> tuple[Slot, ...]:
        """Inputs, in order."""
        return self._stored.inputs

    @property
    def outputs(self) -> tuple[Slot, ...]:
        """Outputs, in order."""
        return self._stored.outputs

    @property
    def operators(self) -> tuple[str, ...]:
        """The kernels that it calls."""
        return self._stored.operators

    @property
    def delegates(self) -> tuple[str, ...]:
        """None: a package has no delegates."""
        return ()

    @property
    def structure(self) -> tuple[str, str]:
        """The structures of inputs and outputs as pytree writes them."""
        return self._stored.structure

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
