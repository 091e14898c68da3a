"""Contributions that the caller of lower gives: to delegates that no plugin knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import torchquilt as tq
from plugins.executorch.models import converted, xnnpack
from strategies import normal
from torchquilt.backend import Contribution, Kernel
from torchquilt.lowering import load
from torchquilt_xnnpack.lowering import CONTRIBUTION

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

X = normal(2, 3, 8, 8)


@pytest.fixture(scope="module")
def quantized() -> Any:
    """A model of two operators."""
    return converted(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), xnnpack(), X)


def lowered(quantized: Any, backends: Any) -> tq.LoweredProgram:
    """The program, compared with the model."""
    return tq.lower(quantized, (X,), target="executorch", backends=backends)


def partitioners() -> list[Any]:
    """ExecuTorch's own partitioner for XNNPACK."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


def partitioners_without_a_spec() -> list[Any]:
    """One whose class does not call its base, as those of Arm."""
    (made,) = partitioners()
    del made._spec
    return [made]


@pytest.mark.parametrize("make", [partitioners, partitioners_without_a_spec])
def test_partitioners_of_the_caller_take_part(quantized: Any, make: Any) -> None:
    """The ledger says what they take, as of any backend, and the program is verified."""
    program = lowered(quantized, {"mine": Contribution(partitioners=make)})
    assert program.backends == ("mine",)
    assert program.ledger is not None
    assert {row.lowered.code for row in program.ledger.rows if row.lowered} == {"delegated_as_integers"}
    assert program.verification is not None
    assert len(program.verification.outputs) == 1


def test_none_stands_for_the_installed_backend(quantized: Any) -> None:
    """So a mapping can have both."""
    program = lowered(quantized, {"mine": Contribution(), "xnnpack": None})
    assert program.backends == ("mine", "xnnpack")
    assert program.kernels == lowered(quantized, ["xnnpack"]).kernels != ()


def test_what_is_no_contribution_is_an_error(quantized: Any) -> None:
    """It is found out before anything is lowered."""
    with pytest.raises(tq.LoweringError, match="no contribution") as caught:
        lowered(quantized, {"mine": partitioners})
    assert caught.value.backend == "mine"


@pytest.mark.parametrize(("arithmetic", "code"), [("integer", "integers"), ("float", "float")])
def test_kernels_that_name_no_operator_speak_for_all(quantized: Any, arithmetic: Any, code: str) -> None:
    """Each operator of a delegate whose kernels are alike computes as they do."""
    sizes = []

    def read(payload: bytes) -> Iterator[Kernel]:
        sizes.append(len(payload))
        yield Kernel("move", ("int8",), ("int8",), None)
        for name in ("multiply", "multiply", "add"):
            yield Kernel(name, ("int8",), ("int8",), arithmetic)

    program = lowered(quantized, {"mine": attrs.evolve(CONTRIBUTION, readers={"XnnpackBackend": read})})
    assert program.ledger is not None
    told = {(row.lowered.code, row.lowered.text) for row in program.ledger.rows if row.lowered}
    why = f"the delegate ({sizes[0]:,} bytes) computes with {arithmetic}s only: 2 multiply, 1 add"
    assert told == {(f"delegated_as_{code}", why)}


def test_kernels_that_differ_and_name_no_operator_speak_for_none(quantized: Any) -> None:
    """The graph decides, since it is not known which operator is which."""

    def read(payload: bytes) -> Iterator[Kernel]:
        yield Kernel("multiply", ("int8",), ("int8",), "integer")
        yield Kernel("divide", ("fp32",), ("fp32",), "float")

    program = lowered(quantized, {"mine": attrs.evolve(CONTRIBUTION, readers={"XnnpackBackend": read})})
    assert program.ledger is not None
    told = [row.lowered for row in program.ledger.rows if row.lowered]
    assert {one.code for one in told} == {"delegated_as_integers"}
    assert not any("only" in one.text for one in told)


def test_a_program_of_given_contributions_is_loaded(quantized: Any, tmp_path: Any) -> None:
    """It computes the same as before it was saved."""
    program = lowered(quantized, {"mine": Contribution(partitioners=partitioners)})
    program.save(tmp_path / "model.pte")
    torch.testing.assert_close(load(tmp_path / "model.pte").run(X), program.run(X), rtol=0, atol=0)
