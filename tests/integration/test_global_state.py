"""Settings that a program makes for all of torch get into nothing that the flow makes."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import torchquilt as tq
from strategies import normal
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.pt2e.reference import to_reference
from torchquilt_executorch.target import ExecuTorchTarget
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

INPUTS = (normal(2, 3, 8, 8),)
BATCHES = [(normal(2, 3, 8, 8, seed=seed),) for seed in range(2)]


@contextlib.contextmanager
def _set(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def _default_dtype(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return _set(torch.get_default_dtype, torch.set_default_dtype, dtype)


#: What a program may have set, and how: each makes a context.
SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "bfloat16 by default": lambda: _default_dtype(torch.bfloat16),
    "float64 by default": lambda: _default_dtype(torch.float64),
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: _set(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "threads": lambda: _set(torch.get_num_threads, torch.set_num_threads, torch.get_num_threads() + 1),
}


@contextlib.contextmanager
def _everything() -> Iterator[None]:
    """All of the settings at once; of the dtypes the last."""
    with contextlib.ExitStack() as stack:
        for make in SETTINGS.values():
            stack.enter_context(make())
        yield


# One by one takes half a minute, which is for the long run.
FLOWS = [
    pytest.param(_everything, id="everything"),
    *(pytest.param(make, id=name, marks=pytest.mark.long) for name, make in SETTINGS.items()),
]


class Net(nn.Module):
    """Convolutions, a linear whose weight is computed from two, and a constant that is added."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.rand(6, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify an image."""
        features = self.features(x).flatten(1) * 0.3
        return nn.functional.linear(features, self.head.weight * self.scale, self.head.bias)


@attrs.frozen(eq=False)
class Results:
    """Results of each step of the flow, as plain values."""

    ledgers: tuple[str, ...]
    code: tuple[str, ...]
    tensors: tuple[dict[str, torch.Tensor], ...]
    program: bytes
    outputs: torch.Tensor


def _flow(exported: torch.export.ExportedProgram, quantizer: XNNPACKQuantizer, path: Path) -> Results:
    """Every step of the flow, once."""
    explained = tq.explain(exported, quantizer)
    prepared = tq.calibrate(tq.prepare_pt2e(exported, quantizer), BATCHES)
    converted = tq.convert_pt2e(prepared)
    unfolded = tq.convert_pt2e(prepared, fold_quantize=False)
    reference = to_reference(converted)
    tq.save(converted, path, INPUTS)
    loaded = tq.load(path)
    program = tq.lower(converted, INPUTS, verify=True)
    models = (converted, unfolded, reference)
    return Results(
        ledgers=tuple(ledger.to_json() for ledger in (explained, tq.ledger_of(converted))),
        code=(*(model.code for model in models), loaded.module().code),
        tensors=tuple(model.state_dict() for model in (*models, loaded.module())),
        program=tq.lower(loaded).buffer,
        outputs=program.run(*INPUTS),
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="static", marks=pytest.mark.long), pytest.param(True, id="dynamic")],
)
def quantizer(request: pytest.FixtureRequest) -> XNNPACKQuantizer:
    """A quantizer for all of the model."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=request.param)
    return XNNPACKQuantizer().set_global(config)


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    """The model, exported with nothing set."""
    return torch.export.export(Net().eval(), INPUTS)


@pytest.fixture(scope="module")
def expected(
    exported: torch.export.ExportedProgram,
    quantizer: XNNPACKQuantizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    """Results of the flow with nothing set."""
    return _flow(exported, quantizer, tmp_path_factory.mktemp("plain") / "model.pt2")


@pytest.mark.parametrize("make", FLOWS)
def test_nothing_that_is_set_gets_into_a_result(
    make: Callable[[], contextlib.AbstractContextManager[Any]],
    exported: torch.export.ExportedProgram,
    quantizer: XNNPACKQuantizer,
    expected: Results,
    tmp_path: Path,
) -> None:
    """Graphs, integers, ledger, file and program are those of a process in which nothing is set."""
    with make():
        found = _flow(exported, quantizer, tmp_path / "model.pt2")
    assert found.ledgers == expected.ledgers
    assert found.code == expected.code
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert tensor.dtype is other[key].dtype
            assert torch.equal(tensor, other[key]), key
    assert found.program == expected.program
    assert torch.equal(found.outputs, expected.outputs)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_set_stays_set(name: str, exported: torch.export.ExportedProgram) -> None:
    """After a step, also one that failed, the process is as it was."""

    def state() -> tuple[object, ...]:
        return (
            torch.get_default_dtype(), torch.get_default_device(), torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip

    with SETTINGS[name]():
        before = state()
        tq.explain(exported, XNNPACKQuantizer())
        with pytest.raises(tq.ModelError):
            tq.convert_pt2e(exported)  # type: ignore[arg-type]
        with pytest.raises(tq.ModelError):
            tq.prepare_pt2e(nn.Linear(1, 1), XNNPACKQuantizer())  # type: ignore[arg-type]
        assert state() == before


def test_threads_that_overlap_leave_the_default_dtype_as_it_was() -> None:
    """A second thread keeps float32 when the first one leaves, and does not take it for the program's own."""
    entered, may_leave = threading.Event(), threading.Event()
    seen = []

    def second() -> None:
        with default_global_state():
            entered.set()
            may_leave.wait()
            seen.append(torch.get_default_dtype())

    with _default_dtype(torch.bfloat16):
        thread = threading.Thread(target=second)
        with default_global_state():
            thread.start()
            entered.wait()
        may_leave.set()
        thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() is torch.bfloat16


def test_observers_are_fed_alike_by_hand(exported: torch.export.ExportedProgram) -> None:
    """A prepared model that is called without ``calibrate`` sees float32, whatever the default dtype."""
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        with _default_dtype(dtype):
            prepared = tq.prepare_pt2e(exported, quantizer)
            prepared(*INPUTS)
        found.append(tq.convert_pt2e(prepared).code)
    assert found[0] == found[1]


def _draw() -> tuple[float, float, float]:
    """Random numbers of each source that the flow leaves as it is."""
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


class DrawingQuantizer(XNNPACKQuantizer):
    """A quantizer that draws random numbers when it looks at a graph."""

    def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Draw."""
        _draw()
        return super().transform_for_annotation(model)


def test_the_flow_draws_no_random_numbers_of_the_program(
    exported: torch.export.ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program draws the same with the flow and without it, even if quantizers and runtimes draw.

    ExecuTorch's partitioner draws when it is first asked in a process; here the target always does.
    """
    drawn = []
    lower = ExecuTorchTarget.lower

    def drawing(*args: Any) -> Any:
        drawn.append(_draw())
        return lower(*args)

    monkeypatch.setattr(ExecuTorchTarget, "lower", drawing)
    quantizer = DrawingQuantizer().set_global(get_symmetric_quantization_config())
    _seed()
    expected = [_draw() for _ in range(2)]
    _seed()
    found = [_draw()]
    _flow(exported, quantizer, tmp_path / "model.pt2")
    found.append(_draw())
    assert drawn
    assert found == expected
