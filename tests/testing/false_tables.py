"""Backends that claim what is not so, each in one point. The kit is run on them."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch.fx import GraphModule

import torchquilt as tq
from torchquilt.spec.annotation import ANNOTATION_KEY
from torchquilt.support import operators as ops
from torchquilt.support.constraints import CONSTANT_WEIGHT, FLOAT32, input_rank

ACTIVATION = tq.AllowedSpec("int8", -128, 127, ("per_tensor",), symmetric=False)
WEIGHT = tq.AllowedSpec("int8", -127, 127, ("per_axis",), symmetric=True, ch_axis=0)
GROUPED = tq.AllowedSpec("int8", -8, 7, ("per_group",), symmetric=True, group_sizes=(8,))
STATIC = {"input_activation": (ACTIVATION,), "output_activation": (ACTIVATION,)}
WEIGHTED = {**STATIC, "weight": (WEIGHT,)}


def row(*operators: ops.Operator, name: str = "", specs: Any = WEIGHTED, **rest: Any) -> tq.SupportRow:
    """A row that is true unless something in ``rest`` or the specs is not."""
    rest.setdefault("constraints", (FLOAT32, CONSTANT_WEIGHT))
    return tq.SupportRow(tq.OperatorPattern.of(*operators, name=name), specs, **rest)


class Honest(tq.PatternQuantizer):
    """Claims nothing that is not so."""

    TABLE = tq.SupportTable("honest", (row(ops.LINEAR, targets=("toy",)), row(ops.ADD, specs=STATIC)))


class RightAlone(tq.PatternQuantizer):
    """Quantizes each layer rightly, and the second of two layers in a row with a tenth of its range."""

    TABLE = Honest.TABLE

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, and forget how large the outputs of a second layer are."""
        wrong = tq.FixedQParamsQuantizationSpec(
            "int8", scale=1e-3, zero_point=0, quant_min=-128, quant_max=127
        )
        for node in super().annotate(model).graph.nodes:
            annotation = tq.annotation_of(node)
            if annotation and any(tq.annotation_of(source) for source in node.all_input_nodes):
                node.meta[ANNOTATION_KEY] = attrs.evolve(annotation, output_qspec=wrong)
        return model


class Shadowed(tq.PatternQuantizer):
    """Its second row is never reached: the first one takes all of it."""

    TABLE = tq.SupportTable("shadowed", (row(ops.LINEAR), row(ops.LINEAR, name="linear_again")))


class Forgetful(tq.PatternQuantizer):
    """Claims additions and does not annotate them."""

    TABLE = Honest.TABLE

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, and forget about additions."""
        for node in super().annotate(model).graph.nodes:
            if node.target is torch.ops.aten.add.Tensor:
                node.meta.pop(ANNOTATION_KEY, None)
        return model


class TooWide(tq.PatternQuantizer):
    """Claims weights in groups of eight, whether or not the features divide into them."""

    TABLE = tq.SupportTable("too_wide", (row(ops.LINEAR, specs={**STATIC, "weight": (GROUPED,)}),))


class Steep(tq.PatternQuantizer):
    """Claims the exponential function with eight bits, whose steps it makes very large."""

    EXP = ops.Operator("exp", ("aten.exp.default",), (ops.Operand("input_activation", 0, "self"),))
    TABLE = tq.SupportTable("steep", (row(EXP, specs=STATIC, constraints=(FLOAT32,)),))
    conformance_examples = {"exp": lambda: (Exponential(), (torch.linspace(-50, 50, 20),))}  # noqa: RUF012


class Exponential(torch.nn.Module):
    """The exponential function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute it."""
        return torch.exp(x)


class DoesNotLower(tq.PatternQuantizer):
    """Claims that convolutions run on the toy, which knows only linear."""

    TABLE = tq.SupportTable("toy", (row(ops.LINEAR, targets=("toy",)), row(ops.CONV2D, targets=("toy",))))


class FalseConstraint(tq.PatternQuantizer):
    """Says that the input has two dimensions, and takes every other number of them as well."""

    TABLE = tq.SupportTable(
        "false_constraint",
        (row(ops.LINEAR, constraints=(tq.Constraint("rank", input_rank(2).text, lambda _: True), FLOAT32)),),
    )


class EmptyConstraint(tq.PatternQuantizer):
    """Has a constraint of its own that holds for everything, and so says nothing."""

    TABLE = tq.SupportTable(
        "empty_constraint",
        (row(ops.LINEAR, constraints=(tq.Constraint("short", "rows are short", lambda _: True), FLOAT32)),),
    )


class ExemptConstraint(EmptyConstraint):
    """The same, with the reason why no model breaks it."""

    conformance_exemptions = {"constraint:short": "no tensor is that long"}  # noqa: RUF012


class ClaimsNowhere(tq.PatternQuantizer):
    """Claims a target without a lowering."""

    TABLE = tq.SupportTable("nowhere", (row(ops.LINEAR, targets=("toy", "nowhere")),))


class SaysWhyNowhere(ClaimsNowhere):
    """The same, with the reason."""

    conformance_exemptions = {"target:nowhere": "there is no such device yet"}  # noqa: RUF012


class Cheap(tq.PatternQuantizer):
    """Rows that are cheap: beside float operators, as those of the kit's models, they would stay in float."""

    TABLE = tq.SupportTable(
        "cheap", (row(ops.RELU, specs=STATIC, constraints=(FLOAT32,), profitable_alone=False),)
    )


class Pool(tq.PatternQuantizer):
    """A pool that shares its input's parameters, tried with normal numbers."""

    TABLE = tq.SupportTable(
        "pool",
        (
            row(
                ops.ADAPTIVE_AVG_POOL2D,
                specs=STATIC,
                constraints=(FLOAT32,),
                sharing=tq.Sharing.OUTPUT_AS_INPUT,
            ),
        ),
    )
    conformance_examples = {  # noqa: RUF012
        "adaptive_avg_pool2d": lambda: (torch.nn.AdaptiveAvgPool2d(1), (torch.randn(2, 3, 8, 8),))
    }


class Thief(tq.PatternQuantizer):
    """Takes what others have taken."""

    TABLE = Honest.TABLE

    def annotate(self, model: GraphModule) -> GraphModule:
        """Forget who was first."""
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.linear.default:
                node.meta.pop(ANNOTATION_KEY, None)
        return super().annotate(model)


class ByName(tq.PatternQuantizer):
    """Annotates what is called as export calls it, and nothing else."""

    TABLE = Honest.TABLE

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, and forget what has another name."""
        for node in super().annotate(model).graph.nodes:
            if "renamed" in node.name:
                node.meta.pop(ANNOTATION_KEY, None)
        return model


class Fickle(tq.PatternQuantizer):
    """Annotates every other time."""

    TABLE = Honest.TABLE
    turn = 0

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate, if it is its turn."""
        Fickle.turn += 1
        return super().annotate(model) if Fickle.turn % 2 else model


class Insatiable(tq.PatternQuantizer):
    """Changes its mind about what it annotated each time that it is asked."""

    TABLE = Honest.TABLE

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate what is free, and forget what was not."""
        before = [node for node in model.graph.nodes if tq.annotation_of(node) is not None]
        for node in super().annotate(model).graph.nodes:
            if node in before:
                node.meta.pop(ANNOTATION_KEY)
        return model


class Obliging(tq.PatternQuantizer):
    """Takes any config, whether or not it has a row for it."""

    TABLE = Honest.TABLE

    def set_global(self, config: tq.QuantizationConfig | None) -> Obliging:
        """Ask for it without a look at the table."""
        self.intent = self.intent.with_global(config)
        return self


class NotPickled(tq.PatternQuantizer):
    """Keeps something that cannot be pickled."""

    TABLE = Honest.TABLE

    def __init__(self) -> None:
        super().__init__()
        self.lock = lambda: None


class Supplied(tq.PatternQuantizer):
    """Has an operator that the kit cannot call."""

    TANH = ops.Operator("tanh", ("aten.tanh.default",), (ops.Operand("input_activation", 0, "self"),))
    TABLE = tq.SupportTable("supplied", (row(TANH, specs=STATIC, constraints=(FLOAT32,)),))


class WithExample(Supplied):
    """The same, and says how it is called."""

    conformance_examples = {"tanh": lambda: (torch.nn.Tanh(), (torch.linspace(-1, 1, 20),))}  # noqa: RUF012


class NoTable(tq.Quantizer):
    """Claims nothing at all."""
