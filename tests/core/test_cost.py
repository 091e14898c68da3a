"""Cost of prepare and convert: how often they do what, not how long it takes."""

from __future__ import annotations

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
import torchquilt_xnnpack
from control_flow import LAYERS
from strategies import Fn, export, normal
from torchquilt.graph.passes import watching
from torchquilt.graph.subgraphs import regions
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

SIZES = (6, 12, 24)
STATIC = get_symmetric_quantization_config(is_per_channel=True)
IMAGE = normal(1, 4, 4, 4)

# ----------------------------------------------------------------------------------------------------------
# Models of any length
# ----------------------------------------------------------------------------------------------------------


def block() -> nn.Module:
    """A residual block of two convolutions."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(m.second(m.dropout(torch.relu(m.first(x)))) + x)

    parts = {"first": nn.Conv2d(4, 4, 1), "second": nn.Conv2d(4, 4, 1), "dropout": nn.Dropout()}
    return Fn(run, **parts)


def name_of_block(number: int) -> str:
    """All names are of one length, since a longer one may cost a little more."""
    return f"block{number:03}"


def repeated(function: Callable[[Any, torch.Tensor], torch.Tensor], count: int, **parts: Any) -> nn.Module:
    """One function of a tensor, called over and over."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(count):
            x = function(m, x)
        return x

    return Fn(run, **parts)


def dense(count: int) -> nn.Module:
    """Every second tensor joined with the one before: all of them have one scale."""
    return repeated(lambda m, x: torch.cat([m.conv(x)[:, :2], x[:, 2:]], 1), count, conv=nn.Conv2d(4, 4, 1))


def with_many_readers(count: int) -> nn.Module:
    """One tensor that many convolutions read, and the sum of what they make of it."""

    def run(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(m.stem(x))
        return torch.stack([conv(x) for conv in m.convs]).sum(0)

    return Fn(run, stem=nn.Conv2d(4, 4, 1), convs=nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(count)))


def with_batch_norm(count: int) -> nn.Module:
    """Convolutions with a BatchNorm each."""
    layers = (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)) for _ in range(count)
    )
    return nn.Sequential(*layers)


def with_equal_blocks(model: nn.Module) -> nn.Module:
    """A model whose blocks return what they read: by others, the work would depend on the data a little."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() > 1:
            nn.init.eye_(parameter.data.flatten(1))
    return model


#: A model for each kind of thing that there can be many of.
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "linears": lambda count: nn.Sequential(
        *(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(count))
    ),
    "residual blocks": lambda count: nn.Sequential(
        OrderedDict((name_of_block(number), block()) for number in range(count))
    ),
    "batch norms": with_batch_norm,
    "calls of one layer": lambda count: repeated(lambda m, x: m.conv(x), count, conv=nn.Conv2d(4, 4, 1)),
    "calls of one layer with a batch norm": lambda count: repeated(
        lambda m, x: m.norm(m.conv(x)), count, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)
    ),
    "joins": dense,
    "one wide join": lambda count: Fn(lambda m, x: torch.cat([x + n for n in range(count)], 1)),
    "views": lambda count: repeated(lambda m, x: x.transpose(1, 2), count),
    "views behind an operator": lambda count: nn.Sequential(
        nn.Conv2d(4, 4, 1), repeated(lambda m, x: x.transpose(1, 2), count)
    ),
    "numbers": lambda count: repeated(lambda m, x: x * 0.5 + 1, count),
    "readers": with_many_readers,
}


# ----------------------------------------------------------------------------------------------------------
# Counting
# ----------------------------------------------------------------------------------------------------------

_OURS = tuple(str(Path(module.__file__).parent) for module in (tq, torchquilt_xnnpack))


@attrs.define
class Work:
    """Number of our lines that were run, and of graphs that were compiled."""

    lines: int = 0
    compilations: int = 0


@contextmanager
def counting() -> Iterator[Work]:
    """Count what is done in here."""
    work = Work()

    def in_frame(frame: FrameType, event: str, argument: Any) -> Any:
        work.lines += event == "line"
        return in_frame

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        return in_frame if frame.f_code.co_filename.startswith(_OURS) else None

    compile_graph = GraphModule.recompile

    def recompile(model: GraphModule) -> Any:
        work.compilations += 1
        return compile_graph(model)

    before = sys.gettrace()
    with mock.patch.object(GraphModule, "recompile", recompile), watching(lambda name, model: None):
        sys.settrace(enter)
        try:
            yield work
        finally:
            sys.settrace(before)


def work_for(exported: GraphModule, quantizer: tq.Quantizer, *images: torch.Tensor) -> tuple[Work, Work]:
    """Work of preparing a model, and of converting it, calibrated with these images."""
    with counting() as preparing:
        prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
    tq.calibrate(prepared, [(image,) for image in images or (IMAGE,)])
    with counting() as converting:
        tq.convert_pt2e(prepared)
    return preparing, converting


def work_for_training(exported: GraphModule, quantizer: tq.Quantizer, choice: str) -> tuple[Work, Work]:
    """Work of preparing a model for training, and of converting it after a pass in training mode."""
    with counting() as preparing:
        trained = tq.prepare_qat_pt2e(exported, quantizer, fake_quantize=choice, strict=False)
    trained(IMAGE)
    with counting() as converting:
        tq.convert_pt2e(trained)
    return preparing, converting


def rule_for_each(count: int) -> XNNPACKQuantizer:
    """A rule for each of many blocks."""
    quantizer = XNNPACKQuantizer()
    for number in range(count):
        quantizer.set_module_name(name_of_block(number), STATIC)
    return quantizer


def rule_for_all(**asked: bool) -> Callable[[int], tq.Quantizer]:
    """One rule, however long the model is."""
    config = get_symmetric_quantization_config(is_per_channel=True, **asked)
    return lambda _: XNNPACKQuantizer().set_global(config)


def composed(_: int) -> tq.Quantizer:
    """Two backends, of which the first takes nothing here."""
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), rule_for_all()(0)])


CASES = {
    **{name: (make, rule_for_all()) for name, make in MODELS.items()},
    "dynamic": (MODELS["linears"], rule_for_all(is_dynamic=True)),
    "a rule for each block": (MODELS["residual blocks"], rule_for_each),
    "two backends": (MODELS["residual blocks"], composed),
}


@pytest.mark.filterwarnings("ignore:Something was asked for in this model")
@pytest.mark.parametrize("name", CASES)
def test_the_work_is_linear(name: str) -> None:
    """Each further block costs as many lines of ours as the one before, and no further compilation.

    A hundredth is left for names, whose numbers get longer.
    """
    make, quantizer = CASES[name]
    models = [export(with_equal_blocks(make(size)), IMAGE).module() for size in SIZES]
    work_for(models[0], quantizer(SIZES[0]))  # what is found out once, has been
    works = [work_for(model, quantizer(size)) for model, size in zip(models, SIZES, strict=True)]
    for small, middle, large in zip(*works, strict=True):
        assert large.lines - middle.lines == pytest.approx(2 * (middle.lines - small.lines), rel=0.01)
        assert small.compilations == middle.compilations == large.compilations


@pytest.mark.filterwarnings("ignore:Something was asked for in this model")
@pytest.mark.parametrize("choice", ["moving_average", "learned"])
@pytest.mark.parametrize("name", ["batch norms", "residual blocks", "joins"])
def test_the_work_of_training_is_linear(name: str, choice: str) -> None:
    """So it is to prepare a model for training and to convert it, and code is generated once for each."""
    make, quantizer = CASES[name]
    models = [export(with_equal_blocks(make(size)), IMAGE).module() for size in SIZES]
    work_for_training(models[0], quantizer(SIZES[0]), choice)
    works = [
        work_for_training(model, quantizer(size), choice) for model, size in zip(models, SIZES, strict=True)
    ]
    for small, middle, large in zip(*works, strict=True):
        assert large.lines - middle.lines == pytest.approx(2 * (middle.lines - small.lines), rel=0.01)
        assert small.compilations == large.compilations == 1


@pytest.mark.filterwarnings("ignore:Something was asked for in this model")
@pytest.mark.parametrize("name", CASES)
def test_code_is_generated_once(name: str) -> None:
    """Prepare and convert each generate the code of a graph once, however many of their passes edit it."""
    make, quantizer = CASES[name]
    preparing, converting = work_for(export(make(3), IMAGE).module(), quantizer(3))
    assert (preparing.compilations, converting.compilations) == (1, 1)


@pytest.mark.parametrize("name", LAYERS)
def test_code_of_a_subgraph_is_generated_once(name: str) -> None:
    """So is the code of each subgraph of control flow."""
    model = export(nn.Sequential(LAYERS[name](4), nn.Linear(4, 4)), IMAGE).module()
    graphs = len(regions(model))
    preparing, converting = work_for(model, rule_for_all()(1), IMAGE, -IMAGE)
    assert (preparing.compilations, converting.compilations) == (graphs, graphs)


def test_to_explain_generates_no_code() -> None:
    """The decisions of a quantizer are told without a model that could be run."""
    model = export(MODELS["batch norms"](3), IMAGE).module()
    with counting() as explaining:
        tq.explain(model, rule_for_all()(3))
    assert explaining.compilations == 0


@contextmanager
def collecting() -> Iterator[list[int]]:
    """The generations of the collections of garbage that begin in here."""
    begun: list[int] = []

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            begun.append(about["generation"])

    gc.collect()
    gc.callbacks.append(note)
    try:
        yield begun
    finally:
        gc.callbacks.remove(note)


def test_the_heap_is_not_walked_while_a_graph_is_built() -> None:
    """The objects of a long graph look like garbage to Python, which would walk the heap over and over."""
    model, quantizer = export(MODELS["linears"](24), IMAGE).module(), rule_for_all()(24)
    with collecting() as preparing:
        prepared = tq.prepare_pt2e(model, quantizer)
    tq.calibrate(prepared, [(IMAGE,)])
    with collecting() as converting:
        tq.convert_pt2e(prepared)
    # The first collection afterwards goes over what was made.
    assert len(preparing) <= 1
    assert len(converting) <= 1


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_afterwards(enabled: bool) -> None:
    """Whether a step went well or not, and also where the program has switched it off."""
    model = export(MODELS["linears"](1), IMAGE).module()
    try:
        if not enabled:
            gc.disable()
        prepared = tq.prepare_pt2e(model, rule_for_all()(1))
        assert gc.isenabled() is enabled
        with pytest.raises(tq.ModelError):
            tq.prepare_pt2e(prepared, rule_for_all()(1))
        with pytest.raises(tq.CalibrationError):
            tq.convert_pt2e(prepared)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


class Quadratic(tq.Quantizer):
    """Looks at all nodes for each node, and annotates none."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Ask about every node once for every node."""
        for _ in model.graph.nodes:
            for node in model.graph.nodes:
                tq.annotation_of(node)
        return model


def test_work_that_is_not_linear_is_seen() -> None:
    """The count includes loops: a quantizer that looks at the whole graph at each node stands out."""
    models = [export(MODELS["views"](size), IMAGE).module() for size in SIZES]
    small, middle, large = (work_for(model, Quadratic())[0].lines for model in models)
    assert large - middle > 2.1 * (middle - small)
