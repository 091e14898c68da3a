"""The figures of a comparison against plain loops over the values of all nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
from torch.fx import GraphModule, Interpreter, Node

import torchquilt as tq
from small_models import SMALL_MODELS
from strategies import export, normal, quantize
from torchquilt.accuracy.comparison_values import ErrorFigures
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

BATCHES = 3


class Recorder(Interpreter):
    """Runs a graph, keeps the value of each node, and hands on others instead of some."""

    def __init__(self, model: GraphModule, instead: Mapping[str, torch.Tensor] | None = None) -> None:
        super().__init__(model, garbage_collect_values=False)
        self.instead = instead or {}
        self.values: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        """The value of a node, or the other one."""
        value = super().run_node(n)
        self.values[n.name] = value.clone() if isinstance(value, torch.Tensor) else value
        return self.instead.get(n.name, value)


@attrs.frozen(eq=False)
class Subject:
    """A model, its quantized form, three batches, and the comparison of the two."""

    expected: GraphModule
    found: GraphModule
    batches: list[tuple[torch.Tensor, ...]]
    comparison: tq.Comparison

    def compared(self) -> dict[str, tuple[str, list[str], str]]:
        """Operator → float node, quantized nodes that readers read, and the node before it is rounded."""
        ours, theirs = (
            {node.name: node for node in model.graph.nodes} for model in (self.expected, self.found)
        )
        found: dict[str, tuple[str, list[str], str]] = {}
        for row in self.comparison.operators:
            node = theirs[row.node]
            # A folded BatchNorm has no node of its own: its value is that of the convolution.
            users = [user.name for user in ours[row.node].users if "batch_norm" in user.name]
            behind = [name for name in users if name not in theirs]
            plain = behind[0] if behind else row.node
            found[row.node] = (plain, _read_instead(node, row.output is not None), node.name)
        return found

    def runs(self) -> list[tuple[Recorder, Recorder, Recorder]]:
        """For each batch the recorded runs: float, quantized, and quantized with float values handed on."""
        return [self._run(batch) for batch in self.batches]

    def _run(self, batch: tuple[torch.Tensor, ...]) -> tuple[Recorder, Recorder, Recorder]:
        with torch.no_grad():
            plain, accumulated = Recorder(self.expected), Recorder(self.found)
            plain.run(*batch)
            accumulated.run(*batch)
            instead = {
                name: plain.values[float_name]
                for float_name, read, _ in self.compared().values()
                for name in read
            }
            isolated = Recorder(self.found, instead)
            isolated.run(*batch)
        return plain, accumulated, isolated


def _read_instead(node: Node, is_quantized: bool) -> list[str]:
    """The dequantizes of the output of an operator, or the operator itself."""
    if not is_quantized:
        return [node.name]
    return [read.name for user in node.users if "quantize_per" in str(user.target) for read in user.users]


def subject_of(name: str, *, is_dynamic: bool = False) -> Subject:
    """A small model, quantized for XNNPACK and compared."""
    (small,) = (one for one in SMALL_MODELS if one.name == name)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=is_dynamic)
    batches = [small.batch(seed) for seed in range(BATCHES)]
    exported = torch.export.export(small.module(), batches[0])
    prepared = tq.prepare_pt2e(exported, XNNPACKQuantizer().set_global(config))
    found = tq.convert_pt2e(tq.calibrate(prepared, batches[:1]))  # so that some values are cut off
    comparison = tq.compare(exported, found, batches, progress=False)
    return Subject(exported.module(), found, batches, comparison)


CASES = {
    "mobile_net": lambda: subject_of("mobile_net"),
    "u_net": lambda: subject_of("u_net"),
    "transformer": lambda: subject_of("transformer"),
    "transformer, dynamic": lambda: subject_of("transformer", is_dynamic=True),
    "lstm": lambda: subject_of("lstm"),
}


@pytest.fixture(scope="module", params=CASES)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each of the cases."""
    return CASES[request.param]()


def figures(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> ErrorFigures:
    """SQNR, cosine, mean and largest error of all that was seen, from all values together."""
    expected, found = (
        torch.cat([one.double().flatten() for one in part]) for part in zip(*pairs, strict=True)
    )
    noise = found - expected
    power = float(noise.square().sum())
    both = float(expected.norm() * found.norm())
    return ErrorFigures(
        math.inf if power == 0 else 10 * math.log10(float(expected.square().sum()) / power),
        float(expected @ found) / both if both else 1.0,
        float(noise.mean()),
        float(noise.abs().max()),
    )


def same(found: Any, expected: Any) -> bool:
    """Equal but for rounding of sums in float32."""
    return (
        found.sqnr == pytest.approx(expected.sqnr, abs=0.01)
        and found.cosine == pytest.approx(expected.cosine, abs=1e-6)
        and found.mean_error == pytest.approx(expected.mean_error, abs=1e-5)
        and found.max_error == pytest.approx(expected.max_error, rel=1e-5)
    )


@pytest.mark.parametrize("kind", ["accumulated", "isolated"])
def test_the_error_of_every_operator_is_that_of_a_plain_loop(subject: Subject, kind: str) -> None:
    """SQNR, cosine, mean and largest error over three batches."""
    runs, index = subject.runs(), 1 if kind == "accumulated" else 2
    assert len(subject.comparison.operators) > 5
    for name, (plain, read, _) in subject.compared().items():
        pairs = [(run[0].values[plain], run[index].values[read[0]]) for run in runs]
        assert same(getattr(subject.comparison[name], kind), figures(pairs)), name


def test_the_error_of_the_outputs_is_that_of_calls_of_the_models(subject: Subject) -> None:
    """The models are called as a user calls them."""
    with torch.no_grad():
        pairs = [(subject.expected(*batch), subject.found(*batch)) for batch in subject.batches]
    (output,) = subject.comparison.outputs
    assert same(output.error, figures(pairs))


def test_the_use_of_the_integers_is_that_of_a_plain_loop(subject: Subject) -> None:
    """Shares that are cut off and unused, and channels that become zero, of every quantized output."""
    runs = subject.runs()
    for name, (_, read, before) in subject.compared().items():
        use = subject.comparison[name].output
        if use is None or use.range is None:
            continue
        low, high = use.range
        values = [run[2].values[before] for run in runs]
        rounded = [run[2].values[read[0]] for run in runs]
        every = torch.cat([value.flatten() for value in values])
        (scale, zero_point, least, most) = _parameters(subject.found, read[0])
        assert (low, high) == pytest.approx(((least - zero_point) * scale, (most - zero_point) * scale))
        outside = (every < low - scale / 2) | (every > high + scale / 2)
        assert use.saturated == pytest.approx(float(outside.double().mean())), name
        used = min(float(every.max()), high) - max(float(every.min()), low)
        assert use.unused == pytest.approx(max(0.0, 1 - used / (high - low)), abs=1e-6), name
        assert use.sqnr == pytest.approx(figures([*zip(values, rounded, strict=True)]).sqnr, abs=0.01), name


def _parameters(model: GraphModule, name: str) -> tuple[float, int, int, int]:
    (node,) = (node for node in model.graph.nodes if node.name == name)
    scale, zero_point, least, most = node.args[1:5]
    return scale, zero_point, least, most


def test_values_that_become_zero_are_counted() -> None:
    """A few large values stretch the range, so that two channels of four become zero, as do many others."""
    x = torch.cat([normal(1, 2, 5000, seed=1) * 0.01, normal(1, 2, 5000, seed=2)], 1)
    x[0, 3, :3] = 100.0
    model = torch.nn.Conv1d(4, 4, 1)
    found = quantize(model, _static(), x)
    row = tq.compare(export(model, x), found, [(x,)], progress=False)["conv1d"]
    read = next(tensor for tensor in row.tensors if tensor.name.startswith("input"))
    assert read.step is not None
    small = x.abs() < read.step / 2
    assert read.to_zero == pytest.approx(float(small.double().mean()), abs=1e-3)
    assert 0.5 < read.to_zero < 0.9
    assert read.zeroed_channels == 2


def _static() -> Any:
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
