"""Operators that a delegate refuses are left to the runtime and named in the ledger; the rest is lowered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import nn

import torchquilt as tq
import torchquilt_executorch.delegation as delegation
import torchquilt_executorch.opened as opened
import torchquilt_executorch.part_runs as part_runs
import torchquilt_executorch.refusals as refusals
import torchquilt_xnnpack.lowering as xnnpack_lowering
from plugins.executorch.models import converted, xnnpack
from strategies import Fn, normal
from torchquilt_executorch.runner import ExecuTorchRunner

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


class Diamond(nn.Module):
    """Two branches that meet, one of them behind a layer that both read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right, self.last = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The function of the four layers."""
        hidden = torch.relu(self.first(x))
        return self.last(self.left(hidden) + torch.relu(self.right(self.left(hidden))) + hidden)


def codes(program: tq.LoweredProgram) -> dict[str, str]:
    """Node → its lowering status."""
    return {row.node: row.lowered.code for row in program.ledger}


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have XNNPACK's backend state something else of what its delegate must not take."""

    def change(withholds: Callable[[str, Any], str], **changes: Any) -> None:
        changed = attrs.evolve(xnnpack_lowering.CONTRIBUTION, withholds=withholds, **changes)
        monkeypatch.setattr(xnnpack_lowering, "CONTRIBUTION", changed)

    return change


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Number of times that programs are brought to the dialect, and that parts are tried."""
    found = {"programs": 0, "trials": 0}
    bring, try_part = delegation.to_edge_transform_and_lower, refusals._Narrowing._error_without

    def brought(*args: Any, **kwargs: Any) -> Any:
        found["programs"] += 1
        return bring(*args, **kwargs)

    def tried(*args: Any) -> Any:
        found["trials"] += 1
        return try_part(*args)

    monkeypatch.setattr(delegation, "to_edge_transform_and_lower", brought)
    monkeypatch.setattr(refusals._Narrowing, "_error_without", tried)
    return found


def two_partitioners() -> list[Any]:
    """One for what is dynamic, and one for the rest."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )

    return [XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()]


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("kept_out", ["first", "left", "right", "last"])
def test_an_operator_is_kept_out_wherever_it_stands(
    state: Callable[..., None], kept_out: str, is_dynamic: bool
) -> None:
    """It runs in the runtime, whatever is around it; the others stay delegated; the function is the same."""
    model, x = converted(Diamond(), xnnpack(is_dynamic=is_dynamic), normal(3, 8)), normal(3, 8)

    def withholds(_: str, node: Any) -> str:
        modules = node.meta.get("nn_module_stack") or {}
        return "we said so" if any(path == kept_out for path, _ in modules.values()) else ""

    state(withholds, partitioners=two_partitioners)
    program = tq.lower(model, (x,), verify=True)
    refused = [row for row in program.ledger if row.module == kept_out]
    assert {row.lowered.code for row in refused} == {"refused_by_delegate"}
    assert {row.lowered.text for row in refused} == {"we said so"}
    rest = {row.module: row.lowered.code for row in program.ledger if row.is_quantized and row.module}
    assert {rest[name] for name in rest.keys() - {kept_out}} == {"delegated_as_integers"}


def test_prelu_of_a_vector_runs_in_the_runtime_beside_what_is_delegated(counted: dict[str, int]) -> None:
    """The backend states it beforehand, so that nothing is tried and lowered again."""
    module = nn.Sequential(nn.Linear(8, 16), nn.PReLU(16), nn.Linear(16, 4))
    program = tq.lower(converted(module, xnnpack(), normal(2, 8)), (normal(2, 8),), verify=True)
    assert codes(program) == {
        "linear": "delegated_as_integers",
        "prelu": "refused_by_delegate",
        "linear_1": "delegated_as_integers",
    }
    assert "four dimensions" in program.ledger["prelu"].lowered.text
    assert "prelu (aten.prelu.default, module 1): XNNPACK's delegate" in str(program.ledger)
    assert counted == {"programs": 1, "trials": 0}


def test_what_is_not_stated_is_found_out(state: Callable[..., None], counted: dict[str, int]) -> None:
    """The error of the delegate names no operator: those that fail are searched, each one of several."""
    state(lambda *_: "")
    module = Fn(
        lambda m, x: m.second(m.act(m.flat(m.image(m.conv(x)).mean((2, 3))) * 0.5)),
        conv=nn.Conv2d(3, 8, 3),
        image=nn.PReLU(8),
        flat=nn.PReLU(8),
        act=nn.PReLU(8),
        second=nn.Linear(8, 4),
    )
    x = normal(2, 3, 6, 6)
    program = tq.lower(converted(module, xnnpack(), x), (x,), verify=True)
    refused = {name for name, code in codes(program).items() if code == "refused_by_delegate"}
    assert refused == {"prelu_1", "prelu_2"}
    text = program.ledger["prelu_1"].lowered.text
    assert text.startswith("XnnpackBackend refuses it: ")
    assert "ChannelsLastTaggedReshapePass" in text
    assert codes(program)["prelu"] == "delegated_as_float"
    assert counted["programs"] == 2


def test_an_operator_that_the_error_names_is_tried_first(counted: dict[str, int]) -> None:
    """A convolution is called twice, which the delegate cannot; its error names the second call."""
    module = Fn(lambda m, x: m.conv(m.conv(x).relu()), conv=nn.Conv1d(4, 4, 3, padding=1))
    x = normal(2, 4, 8)
    program = tq.lower(converted(module, xnnpack(), x), (x,), verify=True)
    assert codes(program) == {
        "conv1d": "delegated_as_integers",
        "relu": "delegated_as_integers",
        "conv1d_1": "refused_by_delegate",
    }
    assert "Conv1dUnsqueezePass" in program.ledger["conv1d_1"].lowered.text
    assert counted == {"programs": 2, "trials": 1}


def test_what_is_refused_nowhere_is_lowered_once(counted: dict[str, int]) -> None:
    """Nothing is tried."""
    tq.lower(converted(Diamond(), xnnpack(), normal(3, 8)), (normal(3, 8),))
    assert counted == {"programs": 1, "trials": 0}


class Cascade(nn.Module):
    """A net as MTCNN has them: convolutions with PReLU, pooling, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.prelu1 = nn.Conv2d(3, 8, 3), nn.PReLU(8)
        self.conv2, self.prelu2 = nn.Conv2d(8, 16, 3), nn.PReLU(16)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.dense, self.prelu3 = nn.Linear(16 * 9, 32), nn.PReLU(32)
        self.scores, self.boxes = nn.Linear(32, 2), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes and scores."""
        hidden = self.pool(self.prelu1(self.conv1(x)))
        hidden = self.pool(self.prelu2(self.conv2(hidden))).permute(0, 3, 2, 1).contiguous()
        hidden = self.prelu3(self.dense(hidden.view(hidden.shape[0], -1)))
        return self.boxes(hidden), torch.softmax(self.scores(hidden), 1)


def test_what_is_quantized_with_it_is_kept_out_with_it(state: Callable[..., None]) -> None:
    """A layer and its relu are one kernel: neither computes with integers without the other."""
    state(lambda overload, _: "we said so" if overload == "aten.relu.default" else "")
    model, x = converted(Diamond(), xnnpack(), normal(3, 8)), normal(3, 8)
    program = tq.lower(model, (x,), verify=True)
    found = codes(program)
    assert {found[name] for name in ("relu", "linear", "relu_1")} == {"refused_by_delegate"}
    assert program.ledger["linear"].lowered.text == "it is computed with aten.relu.default: we said so"
    assert {found["linear_1"], found["add"]} == {"delegated_as_integers"}


def test_what_the_runtime_refuses_is_left_out_when_the_program_was_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parts are run one by one; the operator without which they run is left to the runtime."""

    def refuse(why: str) -> tq.ProgramError:
        return tq.ProgramError("The runtime cannot load the program.", backend="XnnpackBackend", got=why)

    def run_part(part: Any, _: object) -> None:
        names = {kernel.name for kernel in xnnpack_lowering.kernels_of(bytes(part.processed_bytes))}
        if "Softmax" in names:
            raise refuse("no softmax today")

    run, refusals_left = ExecuTorchRunner.run, [refuse("number 1")]

    def run_once_in_vain(self: ExecuTorchRunner, inputs: Any) -> Any:
        if refusals_left:
            raise refusals_left.pop()
        return run(self, inputs)

    monkeypatch.setattr(part_runs, "run_part", run_part)
    monkeypatch.setattr(ExecuTorchRunner, "run", run_once_in_vain)
    module = Fn(lambda m, x: m.b(m.a(x).softmax(-1)), a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    program = tq.lower(converted(module, xnnpack(), normal(3, 8)), (normal(3, 8),))
    assert program.verification.outputs
    assert codes(program) == {
        "linear": "delegated_as_integers",
        "softmax": "refused_by_delegate",
        "linear_1": "delegated_as_integers",
    }
    assert "no softmax today" in program.ledger["softmax"].lowered.text


def test_a_part_of_a_delegate_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its weights, on numbers of its own."""
    parts = []
    monkeypatch.setattr(opened.Opened, "_kernels_of", lambda _, part: parts.append(part))
    model = converted(Diamond(), xnnpack(), normal(3, 8))
    tq.lower(model, (normal(3, 8),), verify=False)
    assert len(parts) == 1
    part_runs.run_part(parts[0], ())


def test_strict_refuses_what_a_delegate_refuses() -> None:
    """The error names the operator with its module and line, and has the words of the delegate."""
    module = nn.Sequential(nn.Linear(8, 16), nn.PReLU(16), nn.Linear(16, 4))
    with pytest.raises(tq.LoweringError, match="delegate refuses") as caught:
        tq.lower(converted(module, xnnpack(), normal(2, 8)), (normal(2, 8),), strict=True)
    assert str(caught.value.node).startswith("prelu (")
    assert "module 1" in str(caught.value.node)
    assert "four dimensions" in str(caught.value.got)
    assert "strict=False" in str(caught.value.remedy)


@pytest.mark.parametrize("batch", [1, 20])
def test_nets_like_mtcnn_run(batch: int) -> None:
    """Layers run as integers, PReLU where it can run, and the program is the quantized model."""
    x = normal(batch, 3, 18, 18)
    program = tq.lower(converted(Cascade(), xnnpack(), x), (x,), verify=True)
    found = codes(program)
    layers = {row.lowered.code for row in program.ledger if row.is_quantized}
    assert layers == {"delegated_as_integers"}
    assert (found["prelu"], found["prelu_1"], found["prelu_2"]) == (
        "delegated_as_float",
        "delegated_as_float",
        "refused_by_delegate",
    )
