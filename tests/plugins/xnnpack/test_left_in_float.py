"""Float operators compute bit for bit what they did: on random graphs, with nothing or one layer asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import torchquilt as tq
from strategies import export, normal
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

X = normal(3, 8) * torch.tensor([1.0, 0, 1, 1, 0, 1, -1, 1])  # with zeros of its own

Step = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]

#: Operators of a tensor and of another one that return float tensors of the same shape. Many tell zero from
#: what is nearly zero, or are written in another form where they are claimed.
STEPS: dict[str, Step] = {
    "pad": lambda m, x, y: functional.pad(x[:, :6], (1, 1)),
    "pad with a number": lambda m, x, y: functional.pad(x[:, :6], (0, 2), value=0.5),
    "pad of booleans": lambda m, x, y: x * functional.pad(y[:, :4] > 0, (2, 2)),
    "pad of integers": lambda m, x, y: x + functional.pad(y[:, :5].int(), (3, 0)),
    "pad and crop": lambda m, x, y: functional.pad(x, (1, -1)),
    "is zero": lambda m, x, y: x.masked_fill(x == 0, 5.0),
    "is not zero": lambda m, x, y: (x != 0).float() + y,
    "as booleans": lambda m, x, y: torch.where(x.bool(), y, 3.0),
    "sign": lambda m, x, y: torch.sign(x),
    "log": lambda m, x, y: x.abs().log().clamp_min(-1e3),
    "reciprocal": lambda m, x, y: x.reciprocal().clamp(-1e3, 1e3),
    "quotient": lambda m, x, y: x / 3.0,
    "difference": lambda m, x, y: 1.0 - x,
    "sum": lambda m, x, y: x + y,
    "product": lambda m, x, y: x * y,
    "relu": lambda m, x, y: torch.relu(x),
    "clamp": lambda m, x, y: x.clamp(-0.5, 0.5),
    "cast": lambda m, x, y: x.double().float(),
    "halves": lambda m, x, y: torch.cat(x.chunk(2, 1)[::-1], 1),
    "stack": lambda m, x, y: torch.stack([x, y], 1).select(1, 0),
    "squeeze": lambda m, x, y: x.unsqueeze(1).squeeze(),
    "linear": lambda m, x, y: m.other(x),
}


class Steps(nn.Module):
    """A layer, and steps behind it and beside it: each reads what two earlier ones returned."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.steps = steps

    def forward(self, x: torch.Tensor) -> Any:
        """The result of the layer, and all that has no readers."""
        return self.behind(self.layer(x), x)

    def behind(self, y: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        """The same, from what the layer returned."""
        made, read = [y, x], {0}
        for name, first, second in self.steps:
            read |= {first % len(made), second % len(made)}
            made.append(STEPS[name](self, made[first % len(made)], made[second % len(made)]))
        return [y, *(made[i] for i in range(2, len(made)) if i not in read)]


def models() -> st.SearchStrategy[Steps]:
    """Up to eight steps."""
    step = st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9))
    return st.lists(step, min_size=1, max_size=8).map(Steps)


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Whether all bits are the same, NaN among them."""
    return all(torch.equal(a.nan_to_num(77.0), b.nan_to_num(77.0)) for a, b in zip(left, right, strict=True))


def flow(model: nn.Module, asked: XNNPACKQuantizer) -> tuple[Any, Any]:
    """Outputs of the prepared and of the converted model."""
    with torch.no_grad():
        prepared = tq.prepare_pt2e(export(model, X), asked, activation_observer="minmax", strict=False)
        found = prepared(X)
        return found, tq.convert_pt2e(prepared)(X)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=25)
@given(models())
def test_nothing_changes_where_nothing_is_asked(model: Steps) -> None:
    """The prepared and the converted model return what the float model does."""
    with torch.no_grad():
        expected = model(X)
    for found in flow(model, XNNPACKQuantizer()):
        assert same(expected, found)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@settings(max_examples=25)
@given(model=models())
def test_one_layer_changes_only_what_it_returns(is_dynamic: bool, model: Steps) -> None:
    """All else, computed in float from what the layer returns now, has the bits that the model returns."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    for found in flow(model, XNNPACKQuantizer().set_module_name("layer", config)):
        with torch.no_grad():
            assert same(model.behind(found[0], X), found)
    assert not torch.equal(found[0], model.layer(X))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=25)
@given(models().filter(lambda model: all(name != "quotient" for name, _, _ in model.steps)))
def test_forms_compute_the_same_bits(model: Steps) -> None:
    """Observers change nothing, so the prepared model shows what its operators are written as.

    A division that is claimed is a multiplication, which may differ in the last bit.
    """
    with torch.no_grad():
        expected = model(X)
    found, _ = flow(model, XNNPACKQuantizer().set_global(get_symmetric_quantization_config()))
    assert same(expected, found)
