"""The Python of README and of the tour is run as it stands, block after block: none of it is only said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
_IN_REPOSITORY = "https://github.com/torchquilt/torchquilt/blob/main/"
#: As many lines are read before one goes on.
_LONGEST = 150


def _run(page: str) -> dict[str, object]:
    """Names that the code of a page has defined once all of its blocks have run, in order."""
    text = (_ROOT / page).read_text(encoding="utf-8")
    assert "<!-- test" not in text, "code that a reader does not see"
    found: dict[str, object] = {}
    for number, block in enumerate(_BLOCK.findall(text)):
        exec(compile(block, f"{page}, block {number}", "exec"), found)
    return found


@pytest.fixture(scope="module")
def namespace() -> dict[str, object]:
    """Names that the code of the tour has defined."""
    return _run("docs/tour.md")


def test_the_readme_runs_as_it_stands_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that it needs is hidden, what came out is what comes out, and it is short."""
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    program = _run("README.md")["program"]
    printed = capsys.readouterr().out
    (told,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    shares = [line for line in told.splitlines() if "operators (" in line]
    assert len(shares) == 3
    assert [line for line in shares if line not in printed] == []
    assert program.verification  # type: ignore[attr-defined]
    assert len(text.splitlines()) <= _LONGEST


@pytest.mark.long
@pytest.mark.parametrize("folder", ["core", *sorted(path.name for path in (_ROOT / "plugins").iterdir())])
def test_the_readme_of_each_distribution_runs_as_it_stands(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the page of the package index: nothing is left out, and its links lead out of there."""
    page = "core/README.md" if folder == "core" else f"plugins/{folder}/README.md"
    monkeypatch.chdir(tmp_path)
    assert _run(page)
    text = (_ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)|^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    assert [link for pair in links for link in pair if link and not link.startswith("https://")] == []
    local = [link for _, link in links if link.startswith(_IN_REPOSITORY)]
    assert [link for link in local if not (_ROOT / link.removeprefix(_IN_REPOSITORY)).exists()] == []


def _targets(model: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in model.graph.nodes]


def test_every_block_of_the_tour_runs(namespace: dict[str, object]) -> None:
    """The code of the tour runs from top to bottom, and what it saved gives the same numbers again."""
    loaded, quantized = namespace["loaded"], namespace["quantized"]
    inputs = namespace["example_inputs"]
    torch.testing.assert_close(loaded(*inputs), quantized(*inputs), rtol=0, atol=0)


def test_every_other_linear_is_quantized(namespace: dict[str, object]) -> None:
    """The quantizer of every other linear takes the first, third and fifth of five, and no other."""
    import torchquilt as tq

    prepared = tq.prepare_pt2e(namespace["exported"], namespace["EveryOtherLinear"]())
    model = tq.convert_pt2e(prepared)
    linears = [node for node in model.graph.nodes if node.target is torch.ops.aten.linear.default]
    quantized = ["dequantize" in str(node.args[0].target) for node in linears]
    assert quantized == [True, False, True, False, True]


def test_only_linears_with_a_3d_input_are_quantized(namespace: dict[str, object]) -> None:
    """The filter takes the four linears of the layers and leaves the head, whose input is 2-D."""
    import torchquilt as tq

    prepared = tq.prepare_pt2e(namespace["exported"], namespace["only_3d"])
    model = tq.convert_pt2e(prepared)
    assert _targets(model).count("quantized_decomposed.quantize_per_token.default") == 4
    head = [node for node in model.graph.nodes if node.target is torch.ops.aten.linear.default][-1]
    assert "dequantize" not in str(head.args[0].target)
