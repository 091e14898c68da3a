"""The README's Python is run as it stands, block after block, so that none of it is only said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

_README = Path(__file__).parents[2] / "README.md"
_SETUP = re.compile(r"<!-- test: setup\n(.*?)-->", re.DOTALL)
_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def namespace() -> dict[str, object]:
    """Names that the README's code has defined once all of its blocks have run, in order."""
    text = _README.read_text(encoding="utf-8")
    (setup,) = _SETUP.findall(text)
    found: dict[str, object] = {}
    for number, block in enumerate([setup, *_BLOCK.findall(text)]):
        exec(compile(block, f"README.md, block {number}", "exec"), found)
    return found


def _targets(model: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in model.graph.nodes]


def test_every_block_of_the_readme_runs(namespace: dict[str, object]) -> None:
    """The code of the README runs from top to bottom, and what it saved gives the same numbers again."""
    loaded, quantized = namespace["loaded"], namespace["quantized"]
    inputs = namespace["example_inputs"]
    torch.testing.assert_close(loaded(*inputs), quantized(*inputs), rtol=0, atol=0)


def test_every_other_linear_is_quantized(namespace: dict[str, object]) -> None:
    """The README's quantizer of every other linear takes the first, third and fifth of five, and no other."""
    import torchquilt as tq

    prepared = tq.prepare_pt2e(namespace["exported"], namespace["EveryOtherLinear"]())
    model = tq.convert_pt2e(prepared)
    linears = [node for node in model.graph.nodes if node.target is torch.ops.aten.linear.default]
    quantized = ["dequantize" in str(node.args[0].target) for node in linears]
    assert quantized == [True, False, True, False, True]


def test_only_linears_with_a_3d_input_are_quantized(namespace: dict[str, object]) -> None:
    """The README's filter takes the four linears of the layers and leaves the head, whose input is 2-D."""
    import torchquilt as tq

    prepared = tq.prepare_pt2e(namespace["exported"], namespace["only_3d"])
    model = tq.convert_pt2e(prepared)
    assert _targets(model).count("quantized_decomposed.quantize_per_token.default") == 4
    head = [node for node in model.graph.nodes if node.target is torch.ops.aten.linear.default][-1]
    assert "dequantize" not in str(head.args[0].target)
