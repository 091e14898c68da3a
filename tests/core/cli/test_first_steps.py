"""The command without arguments, and a recipe to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

import torchquilt as tq
from commands import Files, Run
from plugin_sites import Site


def test_without_arguments_it_says_what_is_installed_and_what_to_do_next(run: Run) -> None:
    """Every plugin with presets of it, and the commands in their order."""
    answer = run()
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"torchquilt {tq.__version__}\n")
    installed, _, after = answer.out.partition("\nnext:\n")
    for plugin in tq.backends():
        assert plugin.manifest is not None
        assert f"\n{plugin.name} " in installed
        assert plugin.manifest.preset_names[0] in installed
    order = [after.index(f"torchquilt {name}") for name in ("recipe new", "explain", "quantize", "lower")]
    assert order == sorted(order)


def test_the_commands_that_it_shows_can_be_run(run: Run, files: Files, tmp_path: Path) -> None:
    """Those about recipes, explaining and quantizing, with names of files filled in."""
    lines = [line for line in run().out.splitlines() if line.startswith("torchquilt ")][1:]
    commands = [line.split("  ")[0].removeprefix("torchquilt ") for line in lines]
    for name in ("recipe new", "explain", "quantize", "lower"):
        (command,) = [one for one in commands if one.startswith(name)]
        words = [
            {
                "MODEL": str(files.model),
                "DATA": str(files.data),
                "recipe.toml": str(tmp_path / "recipe.toml"),
                "quantized.pt2": str(tmp_path / "quantized.pt2"),
                "program": str(tmp_path / "program"),
            }.get(word, word)
            for word in command.split()
        ]
        if name == "lower":
            continue  # each target has tests of its own, and takes its time
        assert run(*words).code == 0, command


def test_with_nothing_installed_it_says_what_could_be(run: Run, site: Site) -> None:
    """The pip lines, and no commands that could not work."""
    answer = run()
    assert answer.code == 0
    assert "pip install torchquilt-xnnpack" in answer.out
    assert "torchquilt quantize" not in answer.out


def test_with_nothing_but_a_broken_plugin_it_names_the_doctor(run: Run, site: Site) -> None:
    """A plugin that does not load is listed with that, and no command is shown that needs it."""
    site.plugin("mill", source="import missing_library")
    answer = run()
    assert "broken: torchquilt plugins doctor says more" in answer.out
    assert "torchquilt quantize" not in answer.out


def test_a_new_recipe_is_that_of_the_preset(run: Run, tmp_path: Path) -> None:
    """Comments aside, it says what the quantizers of these presets say, in their order."""
    path = tmp_path / "recipe.toml"
    answer = run(
        *("recipe", "new", "--backend", "executorch_embedding:byte_per_row"),
        *("--backend", "xnnpack", "--preset", "static_int8", "-o", path),
    )
    assert (answer.code, answer.err) == (0, "")
    assert f"torchquilt explain MODEL --recipe {path}" in answer.out
    composed = tq.ComposableQuantizer(["executorch_embedding:byte_per_row", "xnnpack:static_int8"])
    assert tq.Recipe.of(tq.Recipe.load(path).quantizer()) == tq.Recipe.of(composed)
    assert "#   dynamic_int8: " in path.read_text()


def test_the_examples_in_a_new_recipe_work_when_they_are_uncommented(run: Run, tmp_path: Path) -> None:
    """Each comment is a rule of its own kind."""
    text = run("recipe", "new", "--backend", "xnnpack:static_int8").out
    examples = text[text.index("# [[quantizer.module]]") :]
    path = tmp_path / "recipe.toml"
    path.write_text(text + "\n".join(line.removeprefix("# ") for line in examples.splitlines()))
    intent = tq.Recipe.load(path).quantizer().quantizers[0].intent  # type: ignore[attr-defined]
    assert [rule.name for rule in intent.name_rules] == ["head"]
    assert len(intent.type_rules) == 1


def test_a_file_that_is_there_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    """A recipe that was worked on is not lost."""
    path = tmp_path / "recipe.toml"
    path.write_text("mine")
    answer = run("recipe", "new", "--backend", "xnnpack:static_int8", "-o", path)
    assert answer.code == 2
    assert "is there already" in answer.err
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--backend", "xnnpack"), 2, ("needs a preset", "static_int8_per_channel", "xnnpack:PRESET")),
        (("--backend", "xnnpack:static"), 3, ("no preset 'static'", "static_int8")),
        (("--backend", "xnnpck:static_int8"), 3, ("xnnpck", "did you mean 'xnnpack'")),
        (("--backend", "executorch:static_int8"), 3, ("executorch", "lowering target")),
    ],
)
def test_what_is_not_there_is_an_error_with_what_is(
    run: Run, tmp_path: Path, options: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    """Nothing is written then."""
    path = tmp_path / "recipe.toml"
    answer = run("recipe", "new", *options, "-o", path)
    assert (answer.code, answer.out) == (code, "")
    assert all(word in answer.err for word in words), answer.err
    assert not path.exists()
