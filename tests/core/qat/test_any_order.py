"""Whatever is done to a model while it trains, and in whatever order: it converts to what it computes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional

import torchquilt as tq
from strategies import Step, normal
from torchquilt.graph.node_values import arguments_of, operator_of
from trained import differences, distances, step, values_of, weighted

# Fake quantize that is off somewhere is warned of, and that is not what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:Fake quantize is off")

KINDS = (
    "conv",
    "conv_bn",
    "conv_bn_relu",
    "depthwise_bn",
    "bn",
    "dropout",
    "functional_dropout",
    "attention",
    "relu",
    "add",
)


class Net(nn.Module):
    """Random steps over images of four channels, and a linear with a BatchNorm at the end."""

    def __init__(self, steps: tuple[Step, ...], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.steps = steps
        self.layers = nn.ModuleList(_layer(one) for one in steps)
        self.head = nn.Linear(4, 3)
        self.last = nn.BatchNorm1d(3, eps=1e-4, momentum=0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each step reads any value before it."""
        values = [x]
        for one, layer in zip(self.steps, self.layers, strict=True):
            read = [values[index % len(values)] for index in one.inputs]
            if one.kind == "functional_dropout":
                values.append(functional.dropout(read[0], (one.number + 1) / 10, self.training))
            elif one.kind == "attention":
                probability = (one.number + 1) / 10 if self.training else 0.0
                values.append(functional.scaled_dot_product_attention(*read[:1] * 3, dropout_p=probability))
            else:
                values.append(read[0] + read[1] if one.kind == "add" else layer(read[0]))
        return self.last(self.head(values[-1].mean((2, 3))))

    def __repr__(self) -> str:
        return f"Net({', '.join(f'{one.kind}{one.inputs}{one.number}' for one in self.steps)})"


def _layer(one: Step) -> nn.Module:
    parts: list[nn.Module] = []
    eps, momentum = (1e-5, 1e-3, 1e-2)[one.number % 3], (0.1, 0.01, 0.5)[one.number % 3]
    if one.kind.startswith(("conv", "depthwise")):
        groups = 4 if one.kind.startswith("depthwise") else 1
        parts.append(nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=one.number % 2 == 0))
    if "bn" in one.kind:
        norm = nn.BatchNorm2d(4, eps=eps, momentum=momentum, affine=one.number != 2)
        parts.append(norm)
    if one.kind.endswith("relu"):
        parts.append(nn.ReLU())
    if one.kind == "dropout":
        parts.append(nn.Dropout(0.1 * (one.number + 1)))
    return nn.Sequential(*parts)


@st.composite
def nets(draw: st.DrawFn) -> Net:
    """A model of up to six steps."""
    steps = []
    for length in range(1, draw(st.integers(1, 6)) + 1):
        kind = draw(st.sampled_from(KINDS))
        last = (length - 1, draw(st.integers(0, length - 1)))
        steps.append(Step(kind, last, draw(st.integers(0, 3))))
    return Net(tuple(steps), draw(st.integers(0, 99)))


ACTIONS = (
    "train",
    "eval",
    "step",
    "step",
    "evaluate",
    "freeze_observers",
    "unfreeze_observers",
    "freeze_batch_norm",
    "unfreeze_batch_norm",
    "disable_fake_quantize",
    "enable_fake_quantize",
    "deepcopy",
    "reload",
    "move",
)


def literals(model: GraphModule) -> list[tuple[str, Any]]:
    """Every number that stands in the graph or in a module in place of an operator, in their order."""
    found: list[tuple[str, Any]] = []
    for node in model.graph.nodes:
        if node.op == "call_function" and operator_of(node) is not None:
            found += [(node.name, value) for value in arguments_of(node).values() if _is_literal(value)]
        elif node.op == "call_module":
            found += [(node.name, value) for value in node.args if _is_literal(value)]
            held = model.get_submodule(str(node.target))
            found += [
                (name, getattr(held, name))
                for name in ("momentum", "eps", "flag", "when_training")
                if hasattr(held, name)
            ]
            found += [("eps", held.fold.eps)] if hasattr(held, "fold") else []
    return found


def _is_literal(value: Any) -> bool:
    return isinstance(value, (int, float, str)) or value is None


class Run:
    """A model, and what is done to it."""

    def __init__(self, net: Net, *, training: bool, way: str) -> None:
        self.inputs = (normal(4, 4, 5, 5),)
        self.net, self.way = net, way
        self.exported = torch.export.export(net.train(training), self.inputs)
        self.model = self.fresh()
        self.batch = itertools.count()
        self.step()

    def fresh(self) -> GraphModule:
        """The model, prepared anew."""
        return tq.prepare_qat_pt2e(self.exported, weighted(), fake_quantize=self.way)

    def step(self) -> None:
        """One step with another batch each time."""
        torch.manual_seed(next(self.batch))
        # Learned scales of what a BatchNorm reads jump at the rate that weights take.
        rate = 1e-4 if self.way == "learned" else 0.01
        optimizer = torch.optim.SGD(self.model.parameters(), rate)
        step(self.model, (normal(4, 4, 5, 5, seed=next(self.batch)),), optimizer)

    def do(self, action: str) -> None:
        """Do one thing to the model."""
        if action in ("train", "eval"):
            getattr(self.model, action)()
        elif action == "step":
            self.step()
        elif action == "evaluate":
            self.check_evaluation()
        elif action == "deepcopy":
            self.model = copy.deepcopy(self.model)
        elif action == "reload":
            was_training, frozen = self.model.training, frozen_norms(self.model)
            state = copy.deepcopy(self.model.state_dict())
            self.model = self.fresh().train(was_training)
            self.model.load_state_dict(state)
            assert frozen_norms(self.model) == frozen
        elif action == "move":
            self.model = tq.move_exported_model_to_eval(tq.move_exported_model_to_train(self.model))
        else:
            getattr(tq.qat, action)(self.model)

    def check_evaluation(self) -> None:
        """Evaluation is deterministic, and moves nothing."""
        was_training = self.model.training
        before = copy.deepcopy(self.model.eval().state_dict())
        first = values_of(self.model, self.inputs)
        assert distances(first, values_of(self.model, self.inputs)) == [0.0]
        after = self.model.state_dict()
        moved = [key for key in before if distances([before[key]], [after[key]]) != [0.0]]
        assert [key for key in moved if "quantization_point" not in key] == []
        self.model.train(was_training)


def frozen_norms(model: GraphModule) -> list[bool]:
    """Names of the BatchNorms that are frozen."""
    return [module.is_frozen for module in model.modules() if hasattr(module, "is_frozen")]


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    nets(),
    st.lists(st.sampled_from(ACTIONS), max_size=8),
    st.booleans(),
    st.sampled_from(["moving_average", "moving_average:0.5", "learned"]),
)
def test_any_order_of_actions_leaves_a_model_that_converts_to_what_it_computes(
    net: Net, actions: list[str], training: bool, way: str
) -> None:
    """Literals stay, evaluation is deterministic, and convert equals evaluation, bit for bit."""
    run = Run(net, training=training, way=way)
    before = literals(run.model)
    for action in actions:
        run.do(action)
        assert literals(run.model) == before
    tq.qat.enable_fake_quantize(run.model)
    run.check_evaluation()
    assert differences(run.model, run.inputs) == [0.0]
