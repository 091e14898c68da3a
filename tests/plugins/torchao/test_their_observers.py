"""Observers of foreign quantizers, run as they are: what they find is what they find in torchao's flow."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import GraphModule
from torchao.quantization.pt2e import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    UniformQuantizationObserverBase,
)
from torchao.quantization.pt2e import quantizer as theirs

import torchquilt as tq
from plugins.oracle import are_bit_equal, describe
from plugins.torchao.differences import DIFFERENCES
from plugins.torchao.flows import by_torchao, by_torchquilt, exported
from plugins.torchao.models import MODELS, model_of
from plugins.torchao.vendors import VENDORS
from torchquilt_torchao import foreign

pytestmark = pytest.mark.filterwarnings("ignore")  # of the vendors' own

#: Of these the observer of an output sets the ranges of other observers, in torchao's prepared graph.
SETS_OTHERS = {("qualcomm", "branches")}
#: Vendors whose patterns are found by the modules that only a strict export records.
STRICT = {"example"}
PAIRS = [
    (vendor, name)
    for vendor in VENDORS
    for name in MODELS
    if (vendor, name) not in {*DIFFERENCES, *SETS_OTHERS}
]


@pytest.fixture(autouse=True)
def _nothing_downloaded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Qualcomm's package from looking for its SDK in the home folder, and vendors from logging."""
    monkeypatch.setenv("QNN_STAGING_DIR", str(tmp_path))
    monkeypatch.setattr(logging.root, "disabled", True)


class Quantile(UniformQuantizationObserverBase):  # type: ignore[misc]
    """A user's observer: mean of the 90th percentiles of magnitude of what it was shown."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.found: list[float] = []

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Remember the percentile."""
        self.found.append(float(tensor.detach().abs().flatten().quantile(0.9)))
        return tensor

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point."""
        reach = torch.tensor(sum(self.found) / len(self.found))
        scale, zero_point = self._calculate_qparams(-reach, reach)
        return scale, zero_point


class Doubling(MinMaxObserver):  # type: ignore[misc]
    """An observer that goes on with another tensor."""

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Twice the tensor."""
        seen: torch.Tensor = super().forward(tensor)
        return seen * 2


class Wider(MinMaxObserver):  # type: ignore[misc]
    """An observer that takes another range of integers than it is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "quant_min": -64})


class Everywhere(theirs.Quantizer):  # type: ignore[misc]
    """Quantizes inputs and outputs of convolutions and linears; pools share what they read.

    Args:
        observer: of activations and weights.
        callback: what ``prepare_obs_or_fq_callback`` does to the observers.
    """

    def __init__(self, observer: Any, callback: Callable[[dict[Any, Any]], None] | None = None) -> None:
        spec = theirs.QuantizationSpec
        self.activation = spec(torch.int8, observer, -128, 127, torch.per_tensor_affine)
        self.weight = spec(torch.int8, observer, -127, 127, torch.per_tensor_symmetric)
        self.callback = callback

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate."""
        aten = torch.ops.aten
        for node in model.graph.nodes:
            if node.target in (aten.conv2d.default, aten.linear.default):
                inputs = {node.args[0]: self.activation, node.args[1]: self.weight}
                self._write(node, inputs, self.activation)
            elif node.target in (aten.cat.default, aten.max_pool2d.default, aten.permute.default):
                first, *others = node.all_input_nodes
                shared = theirs.SharedQuantizationSpec((first, node))
                self._write(node, {first: self.activation, **dict.fromkeys(others, shared)}, shared)
        return model

    def _write(self, node: torch.fx.Node, inputs: dict[Any, Any], output: Any) -> None:
        node.meta["quantization_annotation"] = theirs.QuantizationAnnotation(inputs, output, _annotated=True)

    def validate(self, model: GraphModule) -> None:
        """Nothing to check."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: Any) -> None:
        """Do what was asked for."""
        if self.callback is not None:
            self.callback(edge_or_node_to_obs_or_fq)


def run(name: str, quantizer: Any, *, strict: bool = False) -> tuple[GraphModule, GraphModule]:
    """A model as torchao's flow quantizes it, and as ours does with the same observers; three batches."""
    wrapped = foreign(quantizer, observers="theirs")
    ours = by_torchquilt(model_of(name), wrapped, strict=strict, batches=3)
    return by_torchao(model_of(name), quantizer, strict=strict, batches=3), ours


def check(vendor: str, name: str) -> None:
    """The same program, with its parameters, and the same bits of the outputs."""
    expected, found = run(name, VENDORS[vendor](), strict=vendor in STRICT)
    assert describe(found) == describe(expected)
    assert are_bit_equal(found, expected, model_of(name).inputs)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("vendor", "name"), PAIRS)
def test_their_observers_find_what_they_find_in_torchaos_flow(vendor: str, name: str) -> None:
    """Histograms, moving averages and observers of vendors give the same parameters, bit for bit."""
    check(vendor, name)


@pytest.mark.long
@pytest.mark.parametrize(("vendor", "name"), sorted(random.Random(0).sample(PAIRS, 30)))
def test_their_observers_on_what_was_drawn(vendor: str, name: str) -> None:
    """The same for a seeded sample."""
    check(vendor, name)


@pytest.mark.parametrize(
    "observer", [MinMaxObserver, HistogramObserver, MovingAverageMinMaxObserver, Quantile]
)
@pytest.mark.parametrize("name", ["branches", "shapes"])
def test_each_kind_of_observer_is_shown_what_torchao_shows_it(observer: Any, name: str) -> None:
    """As often, too: averages and histograms of a group count what a pool or a permute returns once more."""
    expected, found = run(name, Everywhere(observer.with_args(eps=2**-12)))
    assert describe(found) == describe(expected)
    assert are_bit_equal(found, expected, model_of(name).inputs)
    assert any("quantize_per_tensor" in line for line in describe(found))


def test_a_foreign_callback_replaces_observers_of_torchao() -> None:
    """Its observers stand in both flows where it puts them, for all that share one."""

    def replace(observers: dict[Any, Any]) -> None:
        made: dict[int, Any] = {}
        for key, before in observers.items():
            options = {name: getattr(before, name) for name in ("dtype", "qscheme", "quant_min", "quant_max")}
            observers[key] = made.setdefault(id(before), Quantile(**options))

    expected, found = run("branches", Everywhere(MinMaxObserver, replace))
    plain, _ = run("branches", Everywhere(MinMaxObserver))
    assert describe(found) == describe(expected) != describe(plain)


def test_a_foreign_callback_that_changes_what_is_observed_is_refused() -> None:
    """Annotations say that; and without observers of torchao there is nothing to replace."""
    quantizer = Everywhere(MinMaxObserver, dict.clear)
    with pytest.raises(tq.IntentError, match="which tensors are observed"):
        tq.prepare_pt2e(exported(model_of("conv")), foreign(quantizer, observers="theirs"))
    with pytest.raises(tq.IntentError, match='observers="theirs"'):
        tq.prepare_pt2e(exported(model_of("conv")), quantizer)


@pytest.mark.parametrize(
    ("observer", "problem"),
    [
        (FakeQuantize.with_args(observer=MinMaxObserver), "FakeQuantize cannot be run as it is"),
        (Wider, "Wider observes for other integers"),
    ],
)
def test_an_observer_that_does_not_fit_is_refused(observer: Any, problem: str) -> None:
    """By name, when the model is prepared."""
    quantizer = foreign(Everywhere(observer), observers="theirs")
    with pytest.raises(tq.AnnotationError, match=problem) as caught:
        tq.prepare_pt2e(exported(model_of("conv")), quantizer)
    assert "Everywhere" in str(caught.value)


def test_what_sets_other_observers_is_refused() -> None:
    """Qualcomm's observer of a concat reads torchao's prepared graph."""
    quantizer = foreign(VENDORS["qualcomm"](), observers="theirs")
    with pytest.raises(tq.AnnotationError, match="ConcatObserver cannot be run"):
        tq.prepare_pt2e(exported(model_of("branches")), quantizer)


def test_an_observer_that_changes_what_it_sees_is_refused() -> None:
    """Torchao's flow would go on with the changed tensor."""
    model = model_of("conv")
    prepared = tq.prepare_pt2e(exported(model), foreign(Everywhere(Doubling), observers="theirs"))
    with pytest.raises(tq.CalibrationError, match="Doubling changes the tensor"):
        prepared(*model.inputs)


def test_state_goes_with_the_model_and_into_no_file(tmp_path: Any) -> None:
    """A copy and a loaded state go on where the observers were; files and merging are refused by name."""
    model = model_of("branches")
    quantizer = foreign(Everywhere(Quantile), observers="theirs")
    prepare = tq.prepare_pt2e(exported(model), quantizer)
    prepare(*model.inputs)
    twice = copy.deepcopy(prepare)
    other = tq.prepare_pt2e(exported(model), quantizer)
    other.load_state_dict(prepare.state_dict())
    for each in (twice, other):
        assert describe(tq.convert_pt2e(each)) == describe(tq.convert_pt2e(prepare))
        each(*(tensor * 3 for tensor in model.inputs))
        assert describe(tq.convert_pt2e(each)) != describe(tq.convert_pt2e(prepare))

    with pytest.raises(tq.CalibrationError, match="cannot be kept in a file"):
        tq.calibrate(other, [model.inputs], checkpoint=tmp_path / "state")
    observer = next(module.observer for module in other.modules() if hasattr(module, "observer"))
    with pytest.raises(tq.CalibrationError, match="Quantile cannot be merged"):
        observer.merge(observer.fresh())


def test_training_refuses_observers_that_it_would_not_use() -> None:
    """With ranges that they found, it begins with those."""
    model = model_of("conv")
    quantizer = foreign(Everywhere(Quantile), observers="theirs")
    with pytest.raises(tq.CalibrationError, match="a way of its own"):
        tq.prepare_qat_pt2e(exported(model), quantizer)
    calibrated = tq.calibrate(tq.prepare_pt2e(exported(model), quantizer), [model.inputs])
    trainable = tq.prepare_qat_pt2e(exported(model), quantizer, ranges_from=calibrated)
    trainable.eval()
    assert describe(tq.convert_pt2e(trainable)) == describe(tq.convert_pt2e(calibrated))
