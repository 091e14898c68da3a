"""The kit is run on backends that claim what is not so, and has to say so."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from testing.kit import Run, run_kit

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """The kit, run on the class that the test names with its marker."""
    name, *arguments = request.param
    return run_kit(tmp_path, f"--torchquilt-quantizer=false_tables:{name}", "-p", "toy_target", *arguments)


def on(name: str, *arguments: str) -> pytest.MarkDecorator:
    """Run the kit on one of the classes in ``false_tables``."""
    return pytest.mark.parametrize("run", [(name, *arguments)], indirect=True, ids=[name])


@on("Honest")
def test_a_true_table_passes(run: Run) -> None:
    """A true table is not complained of, so that the other tests of this file are about the falsehoods."""
    assert run.code == 0, run.text
    assert run.line("linear-static")[1:] == [
        "yes",
        "yes",
        *run.line("linear-static")[3:4],
        "yes",
        "yes",
        "2 of 2",
        "yes",
        "toy: yes",
    ]


@on("Shadowed")
def test_a_row_that_is_never_reached_is_caught(run: Run) -> None:
    """A row that another one takes everything from does not annotate; the kit says which one that is."""
    assert run.failed == {"test_a_row_annotates[linear_again-static]"}
    assert "is taken by the row linear, which comes first" in run.text


@on("Forgetful")
def test_a_row_that_does_not_annotate_is_caught(run: Run) -> None:
    """A row that is in the table and not annotated fails, and the other row does not."""
    assert "test_a_row_annotates[add-static]" in run.failed
    assert not [test for test in run.failed if "linear" in test]
    assert run.line("add-static")[1] == "FAILED"


@on("TooWide")
def test_a_row_that_is_too_wide_is_caught(run: Run) -> None:
    """A row without the constraint that it needs fails for shapes that do not convert, and only there."""
    assert run.failed == {"test_the_limits_of_a_row_are_true[linear-static]"}
    assert "The row is too wide" in run.text
    assert "divide into groups of 8" in run.text


@on("Steep")
def test_a_row_that_is_far_from_the_float_operator_is_caught(run: Run) -> None:
    """A row that converts and computes something else fails with the ratio and its bound."""
    assert run.failed >= {"test_a_row_converts[exp-static]"}
    assert run.line("exp-static")[1:4] == ["yes", "FAILED", "FAILED"]
    assert "and has to be 36.2 dB or more" in run.text


@on("DoesNotLower")
def test_a_row_that_does_not_lower_is_caught(run: Run) -> None:
    """A row that claims a target on which it does not run fails there, and only there."""
    assert run.failed == {"test_a_row_lowers[conv2d-static-toy]"}
    assert run.line("conv2d-static")[-1] == "toy: FAILED"
    assert run.line("linear-static")[-1] == "toy: yes"


@on("FalseConstraint")
def test_a_constraint_that_does_not_mean_what_it_says_is_caught(run: Run) -> None:
    """A constraint with a text of the core's that holds for something else fails at that limit."""
    assert run.failed == {"test_the_limits_of_a_row_are_true[linear-static]"}
    assert "says that the input has 2 dimensions" in run.text


@on("EmptyConstraint", "-k", "limits")
def test_a_constraint_that_is_always_true_is_caught(run: Run) -> None:
    """A constraint that no model breaks fails, and the message says what to supply."""
    assert run.failed == {"test_the_limits_of_a_row_are_true[linear-static]"}
    assert "No model breaks the constraint 'short' of linear" in run.text


@on("ExemptConstraint", "-k", "limits")
def test_a_constraint_that_no_model_can_break_is_exempt_with_a_reason(run: Run) -> None:
    """The author names it and says why; nothing fails then."""
    assert run.code == 0, run.text


@on("ClaimsNowhere", "-k", "target or lowers")
def test_a_target_that_nobody_lowers_to_is_caught(run: Run) -> None:
    """A claim about it fails, once for the table, and the other target's does not."""
    assert run.failed == {"test_a_target_is_lowered_to[nowhere]"}
    assert "nothing here lowers to it" in run.text
    assert run.line("linear-static")[-1] == "toy: yes, nowhere: not checked"


@on("SaysWhyNowhere", "-k", "target or lowers")
def test_a_target_that_cannot_be_lowered_to_is_exempt_with_a_reason(run: Run) -> None:
    """The author says why there is nothing to lower with; nothing fails then."""
    assert run.code == 0, run.text


@on("Cheap")
def test_a_cheap_row_is_tested_whatever_stands_beside_it(run: Run) -> None:
    """Profitability does not keep the kit from a row: each of its models is claimed."""
    assert run.code == 0, run.text
    assert run.line("relu-static")[1:3] == ["yes", "yes"]


@on("Pool")
def test_a_bound_fits_the_data_that_is_supplied(run: Run) -> None:
    """A mean of normal numbers on the range of its input has few steps, and no row can change that."""
    assert run.code == 0, run.text


@on("Thief")
def test_a_quantizer_that_takes_what_is_taken_is_caught(run: Run) -> None:
    """Changing what a foreign quantizer decided fails the composition, though the row itself is fine."""
    assert {test.partition("[")[0] for test in run.failed} >= {
        "test_what_a_foreign_quantizer_took_first_stays_its_own"
    }
    assert run.line("linear-static")[1:3] == ["yes", "yes"]


@on("ByName", "-k", "test_annotation_is and linear")
def test_annotation_that_depends_on_names_is_caught(run: Run) -> None:
    """A quantizer that goes by the names of nodes fails where they are others, and only there."""
    assert run.failed == {"test_annotation_is_independent_of_names[linear-static]"}


@on("Fickle", "-k", "test_annotation_is_deterministic and linear")
def test_annotation_that_is_not_deterministic_is_caught(run: Run) -> None:
    """A quantizer that does not do the same thing twice fails."""
    assert run.failed == {"test_annotation_is_deterministic[linear-static]"}


@on("Insatiable", "-k", "test_annotation_is and linear")
def test_annotation_that_is_not_idempotent_is_caught(run: Run) -> None:
    """A quantizer that undoes its work when it is asked again fails there, and only there."""
    assert run.failed == {"test_annotation_is_idempotent[linear-static]"}


@on("Obliging", "-k", "refused and linear")
def test_a_request_that_is_not_refused_is_caught(run: Run) -> None:
    """A quantizer that takes a config for which it has no row fails."""
    assert run.failed == {"test_what_a_row_does_not_take_is_refused[linear-static]"}
    assert run.line("linear-static")[5] == "FAILED"


@on("NotPickled", "-k", "test_a_quantizer_survives")
def test_a_class_that_cannot_be_pickled_is_caught(run: Run) -> None:
    """A quantizer that copies and does not pickle fails that one test."""
    assert run.failed == {"test_a_quantizer_survives[pickle]"}


def install(folder: Path, presets: str = "") -> None:
    """Put a plugin into a folder, as an installed distribution, whose module imports torch."""
    info = folder / "eager-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eager\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torchquilt]\nhonest = eager\n")
    (folder / "eager.py").write_text(
        dedent(f"""
            import torch
            from torchquilt.plugins import Manifest, PresetInfo, hookimpl

            @hookimpl
            def torchquilt_manifest():
                return Manifest(
                    name="honest", api=1, summary="imports torch", quantizer="false_tables:Honest",
                    presets=({presets}), targets=("toy",),
                )
        """)
    )


def test_a_manifest_that_imports_torch_is_caught(tmp_path: Path) -> None:
    """A plugin module that loads torch for a listing fails, though all that it says is true."""
    install(tmp_path / "site")
    run = run_kit(tmp_path, "--torchquilt-backend=honest", "-k", "manifest", path=(tmp_path / "site",))
    assert run.failed == {"test_the_manifest_imports_no_torch"}, run.text
    assert "Listing this backend loads torch" in run.text


def test_a_manifest_with_presets_that_the_class_does_not_have_is_caught(tmp_path: Path) -> None:
    """A listing may not show presets that cannot be made."""
    install(tmp_path / "site", presets="PresetInfo('fast', 'very'),")
    run = run_kit(tmp_path, "--torchquilt-backend=honest", "-k", "presets", path=(tmp_path / "site",))
    assert run.failed == {"test_the_manifest_names_the_presets_of_the_class"}, run.text
