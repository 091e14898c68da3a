"""Making programs: converted, compiled to see what runs in which arithmetic, and stored as one file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchquilt.backend import Contribution, Lowered, after_passes
from torchquilt_openvino.loading import openvino

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from torchquilt_openvino.runner import OpenVINORunner


class OpenVINOTarget:
    """Lowers to OpenVINO, for the CPU."""

    def lower(self, program: ExportedProgram, contributions: Mapping[str, Contribution]) -> Lowered:
        """Make a program; see :class:`torchquilt.backend.Target`."""
        openvino()
        from torchquilt_openvino.executed import Execution, executed_by
        from torchquilt_openvino.refusals import compiled_where_it_can
        from torchquilt_openvino.runner import OpenVINORunner
        from torchquilt_openvino.signature import check_is_taken, facts_of

        program = after_passes(program, contributions, "OpenVINO")
        check_is_taken(program)
        facts = facts_of(program)
        converted, compiled, refused = compiled_where_it_can(program)
        execution = Execution(program, converted, executed_by(compiled), refused)
        buffer = _stored(converted.model, facts.to_json())
        return Lowered(
            buffer=buffer,
            operations=execution.operations(),
            conversions=tuple(execution.conversions()),
            delegates=(),
            kernels=(),
            operators=OpenVINORunner(buffer).operators,
            smallest_sizes=tuple(tuple(one.low) for one in facts.inputs),
        )

    def open(self, buffer: bytes, _libraries: Sequence[str] = ()) -> OpenVINORunner:
        """Read a stored program; see :class:`torchquilt.backend.Target`."""
        openvino()
        from torchquilt_openvino.runner import OpenVINORunner

        return OpenVINORunner(buffer)


def _stored(model: Any, facts: str) -> bytes:
    """The file of a model."""
    from torchquilt_openvino.stored import FACTS, packed

    model.set_rt_info(facts, list(FACTS))
    with tempfile.TemporaryDirectory() as folder:
        xml, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        openvino().serialize(model, xml, weights)
        return packed(xml.read_bytes(), weights.read_bytes())
