"""Averages with a divisor of their own, written as a pad, an average and a product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional

from pools import SIZES, Averages, settings
from strategies import Fn, normal
from torchquilt.backend import Origins, overload_name, without_pool_divisors

IMAGE = normal(2, 3, 9, 10)
BATCH = torch.export.Dim("batch", min=1, max=8)


def exported(model: nn.Module, x: torch.Tensor = IMAGE, **options: Any) -> ExportedProgram:
    """A model as a program."""
    return torch.export.export(model, (x,), **options)


@pytest.mark.parametrize(("dimensions", "count"), [(2, 150), (3, 80)])
def test_values_and_sizes_are_those_of_torch(dimensions: int, count: int) -> None:
    """With any kernel, stride and padding, counted or not, in ceil mode or not."""
    model, x = Averages(settings(dimensions, count)), normal(2, 2, *SIZES[dimensions])
    found = without_pool_divisors(exported(model, x)).module()(x)
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


def test_no_divisor_is_left_and_each_node_comes_from_its_average() -> None:
    """Also the pads and the plain averages, after a decomposition as well; outputs have their names."""
    program = exported(Averages(settings(2, 8)))
    origins = Origins.of_program(program)
    names = [node.name for node in program.graph.nodes if node.op == "call_function"]
    written = without_pool_divisors(program)
    assert written.graph_signature.user_outputs == program.graph_signature.user_outputs
    for made in (written, written.run_decompositions({})):
        calls = [node for node in made.graph.nodes if node.op == "call_function"]
        assert len(calls) > 2 * len(names)
        assert list(dict.fromkeys(map(origins.of, calls))) == names
        assert all(len(node.args) < 7 for node in calls if overload_name(node).startswith("aten.avg_pool"))


def test_the_program_is_left_as_it_was() -> None:
    """Its graph, and its dynamic sizes."""
    program = exported(Averages(settings(2, 8)), dynamic_shapes=({0: BATCH},))
    before = str(program)
    written = without_pool_divisors(program)
    assert str(program) == before
    assert written.module()(IMAGE[:1])[0].shape[0] == 1
    (x,) = (node.meta["val"] for node in program.graph.nodes if node.op == "placeholder")
    assert isinstance(x.shape[0], torch.SymInt)


@pytest.mark.parametrize(
    "model",
    [
        Fn(lambda _, x: functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
        Fn(lambda _, x: functional.avg_pool2d((10 * x).long(), 2, divisor_override=3)),
    ],
    ids=["no divisor", "integers"],
)
def test_other_averages_are_left_alone(model: nn.Module) -> None:
    """The program is the same; of integers torch rounds the quotient."""
    program = exported(model)
    assert without_pool_divisors(program) is program


class Branches(nn.Module):
    """Averages in the branches of a condition."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Average with either divisor."""
        return torch.cond(
            x.sum() > 0,
            lambda v: functional.avg_pool2d(v, 3, 1, 1, divisor_override=4).reshape(-1),
            lambda v: functional.avg_pool2d(v, 3, 1, 1, divisor_override=-2).reshape(-1),
            (x,),
        )


def test_averages_in_branches_are_written_out() -> None:
    """In subgraphs of control flow, without touching those of the program."""
    model = Branches()
    program = exported(model)
    before = str(program)
    written = without_pool_divisors(program)
    assert "aten.mul.Tensor" in str(written)
    assert str(program) == before
    for x in (IMAGE.abs(), -IMAGE.abs()):
        assert torch.allclose(written.module()(x), model(x), atol=1e-6)
