"""A row that names a lowering target runs there: optional, tested where a checker for the target is given."""

from __future__ import annotations

from torchquilt._internal.torch_private import pytree
from torchquilt.support.table import SupportRow
from torchquilt.testing.bench import Bench
from torchquilt.testing.conftest import NoteDown
from torchquilt.testing.limits import describe
from torchquilt.testing.lowering import Lowering
from torchquilt.testing.subject import Subject
from torchquilt.testing.trials import sqnr


def test_a_target_is_lowered_to(
    claimed_target: str, subject: Subject, lowerings: dict[str, Lowering]
) -> None:
    """A table claims a target only where its rows are lowered and run, or says why that cannot be."""
    reason = subject.exemptions.get(f"target:{claimed_target}")
    assert reason or claimed_target in lowerings, (
        f"{subject.name} claims that rows run on {claimed_target!r}, and nothing here lowers to it.\n"
        "Install a plugin for the target and give it a contribution in the manifest, or write the hook "
        "pytest_torchquilt_lowering (see torchquilt.testing.plugin). Where that is impossible, say why: "
        f"{subject.cls.__name__}.conformance_exemptions = {{'target:{claimed_target}': 'the reason'}}."
    )


def test_a_row_lowers(
    row: SupportRow, target: str, bench: Bench, lowerings: dict[str, Lowering], note: NoteDown
) -> None:
    """The converted model of the row lowers, and the program computes what the converted model does."""
    note(f"lowers:{target}", "")
    for trial in bench.models(row):
        quantized = trial.convert()
        lowered = lowerings[target](quantized, trial.example.fresh_inputs())
        output = pytree.tree_leaves(lowered)[0]
        ratio, bound = sqnr(trial.run(quantized), output), trial.least_sqnr()
        assert ratio >= bound, (
            f"{describe(trial)}: lowered for {target}, SQNR to the converted model {ratio:.1f} dB"
        )
