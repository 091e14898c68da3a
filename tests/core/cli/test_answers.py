"""Answers of commands: as text, and as JSON that says what the Python API says."""

from __future__ import annotations

import json
import re
import shutil
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import torchquilt as tq
from artifacts import change_lock
from commands import Answer, Files, Run, recipe_of
from plugin_sites import Site
from torchquilt.artifact import Lock, load_program, read_lock
from torchquilt.artifact import diff as diff_of_locks
from torchquilt.plugins import registry
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer

# --- plugins ------------------------------------------------------------------------------------------------


def test_plugins_are_listed_with_the_reason_for_those_that_do_not_work(run: Run, site: Site) -> None:
    """The text is a table; the exit code is that of a listing, which does not fail because of a plugin."""
    site.plugin("acme")
    site.plugin("mill", source="import missing_library")
    answer = run("plugins", "list")
    _, _, acme, mill = answer.out.splitlines()
    assert acme.split() == ["acme", "backend", "acme-quilt", "1.0", "ok", "what", "acme", "does"]
    assert mill.endswith("broken  import: ModuleNotFoundError: No module named 'missing_library'")
    assert (answer.code, answer.err) == (0, "")


def test_the_json_of_a_listing_has_what_the_api_has(run: Run) -> None:
    """Every field of the records of tq.backends(), and of the manifests."""
    told = json.loads(run("plugins", "list", "--json").out)
    assert told["schema"] == 1
    for row, backend in zip(told["backends"], tq.backends(), strict=True):
        manifest = backend.manifest
        assert manifest is not None
        for field in ("name", "distribution", "version", "status", "stage", "error"):
            assert row[field] == getattr(backend, field)
        assert (row["api"], row["summary"]) == (manifest.api, manifest.summary)
        assert [preset["name"] for preset in row["presets"]] == [*manifest.preset_names]
        assert row["targets"] == [*manifest.targets]


def test_without_a_plugin_the_listing_says_what_could_be_installed(run: Run, site: Site) -> None:
    """The pip lines of the plugins that are published."""
    assert "pip install torchquilt-xnnpack" in run("plugins", "list").out


def test_doctor_finds_nothing_wrong_here(run: Run) -> None:
    """The installed plugins are loaded completely; versions are told, and the exit code is 0."""
    answer = run("plugins", "doctor", "--json")
    told = json.loads(answer.out)
    assert (answer.code, told["findings"]) == (0, [])
    assert (
        told["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in told["versions"]["torch"]
    )
    assert "nothing is wrong" in run("plugins", "doctor").out


def test_doctor_says_what_is_wrong_and_what_to_do(
    run: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage, error and remedy of what a listing takes for working; the exit code is 1."""
    site.plugin("acme", cls="import missing_library")
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "mill-quilt")
    answer = run("plugins", "doctor")
    assert answer.code == 1
    assert f"{registry.BLOCK_VARIABLE}: 'mill-quilt'" in answer.out
    assert "acme: class: " in answer.out
    assert "No module named 'missing_library'" in answer.out
    assert "to fix it: mend what that error names" in answer.out
    assert "2 found" in answer.out
    findings = json.loads(run("plugins", "doctor", "--json").out)["findings"]
    assert [(found["subject"], found["stage"]) for found in findings] == [
        ("environment", "names"),
        ("acme", "class"),
    ]
    (listed,) = json.loads(run("plugins", "doctor", "--json").out)["backends"]
    assert (listed["status"], listed["error"].partition(":")[0]) == ("broken", "class")


# --- capabilities -------------------------------------------------------------------------------------------

EVERYTHING = reduce(
    or_,
    (
        registry.quantizer_class(backend.name).backend_capabilities()
        for backend in registry.backends()
        if backend.manifest is not None and backend.manifest.quantizer
    ),
)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), EVERYTHING),
        (("xnnpack",), XNNPACKQuantizer.backend_capabilities()),
        (("--op", "linear"), EVERYTHING.filter("linear")),
        (("--op", "nn.Conv2d", "--mode", "static"), EVERYTHING.filter("nn.Conv2d", mode="static")),
        (("--dtype", "uint8"), EVERYTHING.filter(dtype="uint8")),
        (("--bits", "8", "--preset", "byte_per_row"), EVERYTHING.filter(bits=8, preset="byte_per_row")),
        (("--mode", "dynamic"), EVERYTHING.filter(mode="dynamic")),
        (("--target", "executorch", "--op", "relu"), EVERYTHING.filter("relu", target="executorch")),
    ],
)
def test_capabilities_are_those_of_the_api(
    run: Run, arguments: tuple[str, ...], expected: tq.Capabilities
) -> None:
    """The JSON is read as equal capabilities, and the text is how they print."""
    assert len(expected)
    assert tq.Capabilities.from_json(run("capabilities", *arguments, "--json").out) == expected
    assert run("capabilities", *arguments).out == f"{expected}\n"


def test_backends_come_in_the_order_in_which_they_are_named(run: Run) -> None:
    """The first one named is the first to take a node, as in a composition."""
    told = run("capabilities", "xnnpack", "executorch_embedding", "--json").out
    assert tq.Capabilities.from_json(told).backends == ("xnnpack", "executorch_embedding")


def test_a_backend_that_cannot_be_asked_is_left_out_with_a_warning(run: Run, site: Site) -> None:
    """The others answer; asked for by name, it is an error."""
    site.plugin("acme", source="import missing_library")
    answer = run("capabilities")
    assert (answer.code, answer.out) == (0, "no capabilities\n")
    assert answer.err.startswith("warning: acme is left out, which is broken")
    assert run("capabilities", "acme").code == 3


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("xnpack",), 3, "did you mean 'xnnpack'"),
        (("--op", "linaer"), 2, "did you mean linear"),
        (("--op", "torch.nn.GELU"), 2, "No row is about 'torch.nn.GELU': there is adaptive_avg_pool2d, add"),
        (("--target", "executorhc"), 2, "did you mean executorch?"),
        (("--preset", "byte_per_raw"), 2, "did you mean byte_per_row?"),
        (("--dtype", "int7"), 2, "did you mean int"),
        (("--mode", "sometimes"), 2, "'static', 'dynamic', 'weight_only'"),
    ],
)
def test_a_word_that_nothing_has_is_answered_with_the_nearest(
    run: Run, arguments: tuple[str, ...], code: int, hint: str
) -> None:
    """An empty answer would hide the mistake."""
    answer = run("capabilities", *arguments)
    assert answer.code == code
    assert hint in answer.err
    assert answer.out == ""


# --- explain ------------------------------------------------------------------------------------------------


def test_explain_prints_the_ledger_of_the_api(run: Run, files: Files) -> None:
    """The JSON is read as an equal ledger, and the text is how it prints."""
    quantizer = recipe_of("static_int8").quantizer()
    expected = tq.explain(load_program(files.model), quantizer)
    asked = ("explain", files.model, "--recipe", files.recipe)
    assert tq.Ledger.from_json(run(*asked, "--json").out) == expected
    answer = run(*asked)
    assert (answer.code, answer.out, answer.err) == (0, f"{expected}\n", "")
    assert "aten.tanh.default  unsupported_op" in answer.out


def test_rules_without_effect_are_refused_or_reported(run: Run, files: Files, tmp_path: Path) -> None:
    """Strict, it is an error with the nearest name; otherwise a line of the ledger, told once."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'schema = 1\n[[quantizer]]\nbackend = "xnnpack"\nglobal = "static_int8"\n'
        '[[quantizer.module]]\nname = "fd"\nconfig = "float"\n'
    )
    strict = run("explain", files.model, "--recipe", recipe)
    assert (strict.code, strict.out) == (3, "")
    assert strict.err.startswith("error: ")
    assert "fc" in strict.err
    assert "Traceback" not in strict.err
    lenient = run("explain", files.model, "--recipe", recipe, "--no-strict")
    assert (lenient.code, lenient.err) == (0, "")
    assert lenient.out.count("problem: ") == 1


# --- inspect ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A static and a dynamic model, quantized with the API and saved."""
    root = tmp_path_factory.mktemp("saved")
    program = load_program(files.model)
    assert program.example_inputs is not None
    example = program.example_inputs[0]
    for name, preset in (("static", "static_int8"), ("dynamic", "dynamic_int8_per_channel")):
        prepared = tq.prepare_pt2e(program, recipe_of(preset).quantizer())
        tq.save(tq.convert_pt2e(tq.calibrate(prepared, [example])), root / name, example)
    return root / "static", root / "dynamic"


def test_inspect_prints_the_lock(run: Run, saved: tuple[Path, Path]) -> None:
    """The JSON has the lock itself, its ledger, and sizes that add up."""
    told = json.loads(run("inspect", saved[0], "--json").out)
    lock = read_lock(saved[0])
    assert Lock.from_json(json.dumps(told["lock"])) == lock
    assert tq.Ledger.from_json(json.dumps(told["ledger"])) == lock.ledger
    assert told["bytes_by_dtype"] == lock.bytes_by_dtype
    assert told["nbytes"] == saved[0].stat().st_size
    assert lock.ledger is not None
    share = lock.ledger.share()
    assert told["share"]["all"]["operators"] == {"quantized": share.nodes[0], "of": share.nodes[1]}


def test_inspect_shows_versions_quantizer_sizes_and_tensors(run: Run, saved: tuple[Path, Path]) -> None:
    """It shows all that a person needs who was given a file."""
    out, lock = run("inspect", saved[0]).out, read_lock(saved[0])
    assert f"with torch {torch.__version__}" in out
    assert f"quantizer: {lock.quantizer}" in out
    assert str(lock.ledger) in out
    assert re.search(r"^int8 +128 ", out, re.MULTILINE)
    stored = r"^fc\.weight_int8 +buffer +int8\[8, 16\] +int8 \[-127, 127\] per_tensor, scale 0\.00"
    assert re.search(stored, out, re.MULTILINE)
    assert re.search(r"^add +static +int8 \[-128, 127\] per_tensor, scale 0\.0", out, re.MULTILINE)


def test_names_in_a_file_give_no_orders_to_the_terminal(run: Run, saved: tuple[Path, Path]) -> None:
    """Texts of the lock of a file are printed with control characters spelled out."""
    forged = change_lock(
        Path(shutil.copy(saved[0], saved[0].with_name("forged"))),
        lambda lock: lock.update(quantizer="\x1b[2J\x1b]0;title\x07[bold]Fine()[/bold]"),
    )
    assert r"quantizer: \x1b[2J\x1b]0;title\x07[bold]Fine()[/bold]" in run("inspect", forged).out


def test_a_file_without_a_lock_is_told_to_be_one(run: Run, files: Files) -> None:
    """With the path, and with what can be done."""
    answer = run("inspect", files.model)
    assert answer.code == 3
    assert answer.err.startswith(f"error: {files.model}: This is a saved program without a lock")
    assert "to fix it" in answer.err


# --- diff ---------------------------------------------------------------------------------------------------


def test_what_is_equal_has_no_difference(run: Run, saved: tuple[Path, Path]) -> None:
    """Like diff(1): nothing is printed, and the exit code is 0."""
    assert run("diff", saved[0], saved[0]) == Answer(0, "", "")
    assert json.loads(run("diff", saved[0], saved[0], "--json").out)["changes"] == []


@pytest.fixture(params=["lock", "ledger", "capabilities", "inspect"])
def pair(
    request: pytest.FixtureRequest, run: Run, saved: tuple[Path, Path], files: Files, tmp_path: Path
) -> tuple[str, Path, Path, list[Any]]:
    """Two files of a kind, and what the API says of their difference."""
    static, dynamic = read_lock(saved[0]), read_lock(saved[1])
    changes: Any = diff_of_locks(static, dynamic)
    if request.param == "lock":
        return "lock", *saved, [*changes]
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    asked: list[tuple[object, ...]] = [("inspect", path) for path in saved]
    if request.param == "ledger":
        asked = [("explain", files.model, "--recipe", recipe) for recipe in (files.recipe, files.dynamic)]
        assert static.ledger is not None
        assert dynamic.ledger is not None
        changes = static.ledger.diff(dynamic.ledger)
    elif request.param == "capabilities":
        asked = [("capabilities", name) for name in ("xnnpack", "executorch_embedding")]
        changes = XNNPACKQuantizer.backend_capabilities().diff(
            ExecuTorchEmbeddingQuantizer.backend_capabilities()
        )
    for path, arguments in zip((before, after), asked, strict=True):
        path.write_text(run(*arguments, "--json").out)
    return "lock" if request.param == "inspect" else request.param, before, after, [*changes]


def test_a_difference_is_told_as_the_api_tells_it(run: Run, pair: tuple[str, Path, Path, list[Any]]) -> None:
    """A line for each change, or the changes as JSON; the exit code is 1."""
    kind, before, after, changes = pair
    assert changes
    told = run("diff", before, after)
    assert (told.code, told.err) == (1, "")
    assert told.out == "".join(f"{change}\n" for change in changes)
    asked = run("diff", before, after, "--json")
    assert asked.code == 1
    expected = {"schema": 1, "kind": kind, "changes": [attrs.asdict(change) for change in changes]}
    assert json.loads(asked.out) == expected


def test_only_two_of_a_kind_are_compared(
    run: Run, saved: tuple[Path, Path], files: Files, tmp_path: Path
) -> None:
    """A model and a ledger, or something that is neither, are errors and no differences."""
    ledger = tmp_path / "ledger.json"
    ledger.write_text(run("explain", files.model, "--recipe", files.recipe, "--json").out)
    answer = run("diff", saved[0], ledger)
    assert answer.code == 3
    assert "which is a ledger" in answer.err
    answer = run("diff", ledger, files.recipe)
    assert answer.code == 3
    assert f"{files.recipe} is nothing that can be compared" in answer.err
