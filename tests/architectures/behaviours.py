"""Tests of every architecture. A test file derives from :class:`Behaviours` with its table.

The fixtures ``subject`` and ``outcome`` are in ``integration/conftest.py``. An architecture is exported once
and quantized in two ways, and each behaviour is a test that looks at the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import torchquilt as tq
from architectures import Architecture, Inputs
from strategies import sqnr
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from unharmed import Record


def architectures(*table: Architecture) -> pytest.MarkDecorator:
    """Runs the tests of a class for each architecture of a table."""
    return pytest.mark.parametrize("subject", table, ids=str, indirect=True, scope="class")


@attrs.frozen(eq=False)
class Subject:
    """An architecture, exported, and what the float model returns.

    Args:
        architecture: which one.
        exported: its program.
        before: a record of the program, made before anything was done with it.
        batches: what it is calibrated and measured with. The ranges are those of the very inputs that it is
            measured with, since a few hundred numbers say little of the range of others.
        expected: what the float model returns for each batch, as flat lists.
    """

    architecture: Architecture
    exported: ExportedProgram
    before: Record
    batches: tuple[Inputs, ...]
    expected: list[list[Any]]

    @classmethod
    def of(cls, architecture: Architecture) -> Subject:
        """Make and export the model, and run it."""
        batches = (architecture.inputs(0), architecture.inputs(1))
        exported = torch.export.export(
            architecture.model(),
            (),
            batches[0],
            strict=architecture.strict,
            dynamic_shapes=architecture.dynamic_shapes(),
        )
        # Of another model of the same weights: a cache that this one wrote to would be that of the program.
        expected = results(architecture.model(), batches)
        return cls(architecture, exported, Record(exported), batches, expected)


@attrs.frozen(eq=False)
class Outcome:
    """Result of quantizing a subject in one of the two ways.

    Args:
        subject: what was quantized.
        is_dynamic: in which way.
        converted: the quantized model, which has not been run.
        loaded: the module of the program that was saved and loaded, which has not been run.
        found: what the quantized model returns for each batch, as flat lists.
        found_again: what the loaded one returns.
    """

    subject: Subject
    is_dynamic: bool
    converted: GraphModule
    loaded: torch.nn.Module
    found: list[list[Any]]
    found_again: list[list[Any]]

    @classmethod
    def of(cls, subject: Subject, path: Path, *, is_dynamic: bool) -> Outcome:
        """Prepare, calibrate, convert, export again, save, load, and run both."""
        prepared = tq.prepare_pt2e(subject.exported, quantizer(is_dynamic=is_dynamic))
        converted = tq.convert_pt2e(tq.calibrate(prepared, subject.batches))
        # Before it is run, so that a cache is saved as it was at the start.
        tq.save(converted, path, subject.batches[0])
        loaded = tq.load(path).module()
        shown = [*subject.batches]
        if subject.architecture.free:
            shown.append(subject.architecture.smaller(subject.batches[0]))
        return cls(subject, is_dynamic, converted, loaded, results(converted, shown), results(loaded, shown))


def quantizer(*, is_dynamic: bool) -> tq.ComposableQuantizer:
    """Byte embeddings, and everything else that XNNPACK takes."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), XNNPACKQuantizer().set_global(config)])


def results(model: Any, batches: Any) -> list[list[Any]]:
    """Outputs of a model for each batch, one after the other, as flat lists."""
    with torch.no_grad():
        return [pytree.tree_leaves(model(**batch)) for batch in batches]


def measure(expected: list[list[Any]], found: list[list[Any]]) -> list[float]:
    """Signal to noise in dB of each output that has floating point numbers, over all batches."""
    pairs = zip(zip(*expected, strict=True), zip(*found[: len(expected)], strict=True), strict=True)
    return [
        sqnr(_flat(reference), _flat(other))
        for reference, other in pairs
        if isinstance(reference[0], torch.Tensor) and reference[0].is_floating_point()
    ]


def _flat(outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([output.flatten() for output in outputs])


def stored_weights(exported: ExportedProgram) -> set[str]:
    """The names of the linears whose weight is a stored float32 tensor."""
    return {
        node.name
        for node in exported.graph.nodes
        if str(node.target) == "aten.linear.default"
        and node.args[1].op == "placeholder"
        and node.args[1].meta["val"].dtype is torch.float32
    }


def float_matrices(model: torch.nn.Module) -> set[str]:
    """The names of the floating point tensors with two dimensions or more in the state of a model."""
    return {
        name for name, value in model.state_dict().items() if value.is_floating_point() and value.dim() > 1
    }


class Behaviours:
    """The tests. Derive a class whose name starts with ``Test``, under :func:`architectures`."""

    def test_every_output_is_near_that_of_the_float_model(
        self, outcome: Outcome, record_property: Any
    ) -> None:
        """Each has at least the signal to noise that the table says."""
        noise = measure(outcome.subject.expected, outcome.found)
        bound = outcome.subject.architecture.bound(is_dynamic=outcome.is_dynamic)
        record_property("sqnr", f"{min(noise):.1f} dB, bound {bound:.0f}")
        assert min(noise) >= bound, noise

    def test_the_loaded_program_returns_the_same_bits(self, outcome: Outcome) -> None:
        """Exported again, saved and loaded; for every size that is free, and as a cache fills."""
        for found, again in zip(outcome.found, outcome.found_again, strict=True):
            for output, same in zip(found, again, strict=True):
                assert torch.equal(output, same) if isinstance(output, torch.Tensor) else output == same

    def test_every_linear_with_float_weights_is_quantized(self, outcome: Outcome) -> None:
        """Those that stay in float are constants themselves, and the ledger says so."""
        ledger = tq.ledger_of(outcome.converted)
        weights = stored_weights(outcome.subject.exported)
        left = [
            row for row in ledger.left_in_float if row.op == "aten.linear.default" and row.node in weights
        ]
        assert {row.code for row in left} <= {"constant"}, left
        assert [row for row in ledger.quantized if row.op == "aten.linear.default"]

    def test_whatever_stays_in_float_says_why(self, outcome: Outcome) -> None:
        """A stable code and a sentence."""
        for row in tq.ledger_of(outcome.converted).left_in_float:
            assert row.code
            assert row.reasons[0].text

    def test_no_float_weight_is_kept_beside_its_integers(self, outcome: Outcome) -> None:
        """A float matrix in the state is read by an operator that stays in float, or is written to."""
        rows = tq.ledger_of(outcome.converted).left_in_float
        needed = {name for row in rows for name, _ in row.parameters}
        written = set(outcome.subject.exported.graph_signature.buffers_to_mutate.values())
        assert float_matrices(outcome.converted) <= needed | written

    def test_the_exported_program_is_left_alone(self, subject: Subject, outcome: Outcome) -> None:
        """Its graph, metadata and tensors are what they were before it was quantized."""
        subject.before.compare(Record(subject.exported))
