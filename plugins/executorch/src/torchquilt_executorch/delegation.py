"""Bringing a program to ExecuTorch's dialect, where delegates get their parts of it."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

from torchquilt import LoweringError
from torchquilt.backend import Contribution, Origins
from torchquilt_executorch.failures import step
from torchquilt_executorch.given import as_given
from torchquilt_executorch.options import merged
from torchquilt_executorch.refusals import Run, compiled_in, refused
from torchquilt_executorch.withholding import Withheld, WithholdingPartitioner

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LOG = logging.getLogger(__name__)


class Delegation:
    """Bringing a program to ExecuTorch's dialect, with the parts of the delegates cut out.

    Where a delegate refuses an operator, the program is brought there again, with that operator withheld.

    Args:
        program: what is lowered, in ATen's dialect.
        contributions: what backends give.
        origins: of its nodes.
        run: runs what a delegate compiled, by itself, to find what is refused when it runs; None leaves
            that out.
    """

    def __init__(
        self,
        program: ExportedProgram,
        contributions: Mapping[str, Contribution],
        origins: Origins,
        run: Run | None = None,
    ) -> None:
        self._program = program
        self._contributions = contributions
        self._origins = origins
        self._run = run
        #: Backend and number of a partitioner of it → key of an operator → the words of its delegate.
        self._refused: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)

    def to_edge(self) -> tuple[Any, dict[str, str]]:
        """The program in ExecuTorch's dialect, and what is withheld from delegates: key → reason.

        Raises:
            LoweringError: it cannot be brought there, whatever is withheld.
        """
        while True:
            partitioners = self._partitioners()
            failed: LoweringError | None = None
            try:
                edge = self._attempt([*partitioners.values()])
            except LoweringError as error:
                failed = error
            has_learned = (failed is not None or self._run is not None) and self._learn(partitioners)
            if failed is not None and not has_learned:
                raise failed
            if not has_learned:
                reasons = (one.withheld.reasons for one in partitioners.values())
                return edge, {key: reason for of_one in reasons for key, reason in of_one.items()}
            _LOG.info("Lowered again, since a delegate refuses operators.")

    def _partitioners(self) -> dict[tuple[str, int], WithholdingPartitioner]:
        found = {}
        for backend, given in self._contributions.items():
            with step(f"The partitioners of the backend {backend!r} cannot be made.", self._program, backend):
                made = given.partitioners()
            for number, partitioner in enumerate(made):
                withheld = Withheld(self._origins, given.withholds, self._refused[backend, number])
                withheld.state(self._program)
                found[backend, number] = WithholdingPartitioner(partitioner, withheld)
        return found

    def _attempt(self, partitioners: Sequence[WithholdingPartitioner]) -> Any:
        options = merged("edge_options", self._contributions)
        with step("The program cannot be brought to ExecuTorch's dialect, or be delegated.", self._program):
            passes = [one for given in self._contributions.values() for one in given.edge_passes()]
            return to_edge_transform_and_lower(
                as_given(self._program),
                transform_passes=passes or None,
                partitioner=[*partitioners],
                compile_config=EdgeCompileConfig(**options),
            )

    def _learn(self, partitioners: Mapping[tuple[str, int], WithholdingPartitioner]) -> bool:
        """Find out what a delegate refuses; returns whether that is more than was known."""
        is_new = False
        known: set[str] = set()
        for (backend, number), partitioner in partitioners.items():
            compiled = {} if partitioner.divided is None else compiled_in(partitioner.divided)
            own = [one for name, one in compiled.items() if name not in known] if self._run else []
            known |= compiled.keys()
            found = refused(partitioner, self._maker(backend, number), own, self._run or _run_nothing)
            is_new = is_new or bool(found.keys() - self._refused[backend, number].keys())
            self._refused[backend, number].update(found)
        return is_new

    def _maker(self, backend: str, number: int) -> Callable[[], Any]:
        return lambda: self._contributions[backend].partitioners()[number]


def _run_nothing(_compiled: object) -> None:
    """Leave out running."""
