"""The model that convert_pt2e(use_reference_representation=True) returns, as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional

import torchquilt as tq
from strategies import calls, export, normal, prepare
from torchquilt.graph.module_scope import module_path
from torchquilt.pt2e.reference import to_reference
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

ROWS = (normal(16, 12),)
BATCH = (normal(4, 3, 6, 6),)
OTHER = (normal(7, 3, 6, 6, seed=1),)
DYNAMIC = ({0: torch.export.Dim("batch", min=1, max=64)},)


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


@attrs.frozen(eq=False)
class Pair:
    """A model that was converted in both ways from one calibration."""

    converted: GraphModule
    reference: GraphModule


class Network(nn.Module):
    """Convolutions with a residual, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 9, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores, and features."""
        features = torch.relu(self.conv(x))
        features = functional.max_pool2d(torch.relu(self.depthwise(features) + features), 2)
        return self.head(features.flatten(1)), features.mean((2, 3), keepdim=True)


@pytest.fixture(scope="module")
def network() -> Pair:
    """The network, with any batch size, converted in both ways."""
    torch.manual_seed(0)
    exported = export(Network(), *BATCH, dynamic_shapes=DYNAMIC)
    prepared = tq.prepare_pt2e(exported, xnnpack(is_per_channel=True), activation_observer="minmax")
    tq.calibrate(prepared, [BATCH])
    return Pair(tq.convert_pt2e(prepared), tq.convert_pt2e(prepared, use_reference_representation=True))


def test_it_exports_again_with_any_batch_size(network: Pair) -> None:
    """A second export returns the same bits, also for a batch of another size."""
    again = torch.export.export(network.reference, BATCH, dynamic_shapes=DYNAMIC).module()
    for batch in (BATCH, OTHER):
        assert all(map(torch.equal, network.reference(*batch), again(*batch)))


def test_it_saves_and_loads(network: Pair, tmp_path: Path) -> None:
    """A loaded reference model returns the same bits, and needs no operator but torch's own."""
    lock = tq.save(network.reference, tmp_path / "model.pt2", BATCH, dynamic_shapes=DYNAMIC)
    loaded = tq.load(tmp_path / "model.pt2").module()

    assert {row.operator.partition(".")[0] for row in lock.operators} <= {"aten", "quantized_decomposed"}
    for batch in (BATCH, OTHER):
        assert all(map(torch.equal, network.reference(*batch), loaded(*batch)))


def test_weights_stay_bytes_and_are_not_copied(network: Pair) -> None:
    """The state holds the integer weights of the converted model itself, and less than that holds in all."""
    converted, reference = network.converted.state_dict(), to_reference(network.converted).state_dict()
    weights = {name for name, value in converted.items() if value.dtype is torch.int8}

    assert weights <= set(reference)
    assert all(converted[name].data_ptr() == reference[name].data_ptr() for name in weights)
    sizes = [sum(value.nbytes for value in state.values()) for state in (converted, reference)]
    assert sizes[1] <= sizes[0]


def test_recorded_values_are_those_of_a_run(network: Pair) -> None:
    """The value that is recorded for each node has the shape and the type that the node really returns."""

    class Checked(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor):
                seen[n.name] = (value.dtype, n.meta["val"].dtype, value.shape[1:], n.meta["val"].shape[1:])
            return value

    seen: dict[str, tuple[Any, ...]] = {}
    Checked(network.reference).run(*BATCH)
    assert len(seen) > 50
    for name, (dtype, recorded_dtype, shape, recorded_shape) in seen.items():
        assert (dtype, shape) == (recorded_dtype, recorded_shape), name


def test_new_nodes_say_where_they_come_from(network: Pair) -> None:
    """Each operator has the module and the source line of the one that it stands for."""
    modules = []
    for node in calls(network.reference):
        assert {"nn_module_stack", "stack_trace", "from_node"} <= set(node.meta), node
        modules.append(module_path(node))
    convolved, summed = (calls(model, "conv2d")[0] for model in (network.converted, network.reference))
    assert summed.meta["stack_trace"] == convolved.meta["stack_trace"]
    assert {"conv", "depthwise", "head"} <= set(modules)


def test_it_has_the_ledger_of_its_model(network: Pair) -> None:
    """The record of what was decided comes along."""
    assert tq.ledger_of(network.reference) == tq.ledger_of(network.converted)


def test_the_converted_model_stays_as_it_was() -> None:
    """to_reference works on a copy: graph, state and results of the model that it is given do not change."""
    converted = tq.convert_pt2e(tq.calibrate(prepare(nn.Linear(12, 7), xnnpack(), *ROWS), [ROWS]))
    before = (str(converted.graph), list(converted.state_dict()), converted(*ROWS))
    to_reference(converted)

    assert (str(converted.graph), list(converted.state_dict())) == before[:2]
    assert torch.equal(converted(*ROWS), before[2])


def test_rewriting_again_changes_nothing(network: Pair) -> None:
    """A reference model is its own reference representation."""
    assert str(to_reference(network.reference).graph) == str(network.reference.graph)


@pytest.mark.parametrize("stage", ["float", "prepared", "no graph"])
def test_only_a_converted_model_has_a_reference(stage: str) -> None:
    """Anything else is an error that says what was expected."""
    model = {
        "float": lambda: export(nn.Linear(12, 7), *ROWS).module(),
        "prepared": lambda: prepare(nn.Linear(12, 7), xnnpack(), *ROWS),
        "no graph": lambda: nn.Linear(12, 7),
    }[stage]()
    with pytest.raises(tq.ModelError, match="converted") as caught:
        to_reference(model)
    assert caught.value.remedy
