"""Random small graphs through the whole flow: what must hold whatever the model and the quantizer are.

Five hundred graphs in every run; ``pytest --deep`` draws twenty times as many.
"""

from __future__ import annotations

import io
import operator
import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

import torchquilt as tq
from strategies import INT8, WEIGHT, Nothing, RandomModel, export, random_models, sqnr
from torchquilt.graph.node_values import constant_nodes, is_float_tensor, is_overwritten
from torchquilt.graph.subgraphs import Region, regions
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

# Eight bits on a signal of an ordinary shape leave noise of a hundredth of it (40 dB). A path of up to eight
# operators, concatenated with larger tensors and cut out again, has to stay well below the signal. The worst
# that was met is a fourth power that is bounded to [0, 2] afterwards, on its largest values' scale: 19 dB.
LEAST_SQNR = 15.0

#: How many graphs each property is tried with. Together they are more than five hundred.
MANY, SOME, FEW = 220, 80, 20


def examples(number: int) -> Any:
    """So many examples in the profiles of this project, and twenty times as many in ``deep``."""
    return settings(max_examples=number * (20 if settings.default.max_examples > 1000 else 1))


# ----------------------------------------------------------------------------------------------------------
# A quantizer that annotates at random
# ----------------------------------------------------------------------------------------------------------


class AtRandom(tq.Quantizer):
    """Annotates any edges and outputs that can be quantized, with specs of several kinds, or leaves them.

    What it decides depends on the seed and on the position of a node in its graph alone.
    """

    SPECS = (
        INT8,
        tq.QuantizationSpec("uint8"),
        tq.QuantizationSpec("int16", symmetric=True),
        tq.QuantizationSpec("int8", symmetric=True, is_dynamic=True),
        tq.FixedQParamsQuantizationSpec("uint8", 1 / 16, 128),
    )

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def annotate(self, model: GraphModule) -> GraphModule:
        """Decide for each operator in turn."""
        constants = constant_nodes(model.graph)
        for number, node in enumerate(list(model.graph.nodes)):
            chance = random.Random(self.seed * 1_000_003 + number)
            if node.op == "call_function" and node not in constants and chance.random() < 0.6:
                self._annotate(node, constants, chance)
        return model

    def _annotate(self, node: Node, constants: frozenset[Node], chance: random.Random) -> None:
        inputs: dict[Node, Any] = {}
        for source in node.all_input_nodes:
            if is_float_tensor(source) and not is_overwritten(source) and chance.random() < 0.6:
                inputs[source] = _spec_of_input(source, source in constants, chance)
        output = None
        if is_float_tensor(node) and not is_overwritten(node) and chance.random() < 0.6:
            output = chance.choice([spec for spec in self.SPECS if not getattr(spec, "is_dynamic", False)])
            static = [source for source, spec in inputs.items() if spec in (INT8, *self.SPECS[1:3])]
            if static and chance.random() < 0.3:
                output = tq.SharedQuantizationSpec((chance.choice(static), node))
        if inputs or output is not None:
            implicit = chance.random() < 0.8
            tq.annotate_node(node, tq.QuantizationAnnotation(inputs, output, implicit, quantizer=self.name))


def _spec_of_input(source: Node, constant: bool, chance: random.Random) -> Any:
    if not constant:
        return chance.choice(AtRandom.SPECS)
    return WEIGHT if source.meta["val"].dim() >= 2 else INT8


def quantizer_for(kind: int) -> tq.Quantizer:
    """XNNPACK's quantizer, static and dynamic, and one that annotates at random."""
    if kind < 2:
        config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=bool(kind))
        return XNNPACKQuantizer().set_global(config)
    return AtRandom(kind)


quantizer_kinds = st.integers(0, 40).map(lambda number: max(number - 20, 0) or number % 2)


def prepare_leniently(exported: ExportedProgram, quantizer: tq.Quantizer) -> GraphModule:
    """Prepared, also where it turns out that nothing in a random graph can be quantized."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tq.prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)


def calibrated(model: RandomModel, quantizer: tq.Quantizer) -> GraphModule:
    """Prepared, and calibrated with the example."""
    return tq.calibrate(prepare_leniently(export(model, model.example), quantizer), [(model.example,)])


def outputs(model: nn.Module, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of a model."""
    with torch.no_grad():
        return list(pytree.tree_leaves(model(*inputs)))


# ----------------------------------------------------------------------------------------------------------
# What each edge of a graph is
# ----------------------------------------------------------------------------------------------------------


def edges_asked(region: Region, unreached: set[str]) -> dict[str, list[str]]:
    """For each operator of a prepared region: what it should read, and as which integers.

    What is computed from stored tensors alone, as a weight in another shape is, counts as stored.
    """
    found: dict[str, list[str]] = {}
    constants = constant_nodes(region.module.graph)
    for node in _operators(region):
        annotation = _annotation(node, region, unreached)
        asked = annotation.input_qspec_map if annotation else {}
        for source in _tensors(node):
            while source.op == "call_module":
                (source,) = source.all_input_nodes
            made = _annotation(source, region, unreached)
            spec = asked.get(source) or (made.output_qspec if made else None)
            name = "stored" if source in constants else source.name
            found.setdefault(node.name, []).append(name if spec is None else f"{name} as {_in_words(spec)}")
    return found


def _in_words(spec: Any) -> tuple[Any, ...]:
    """The integers that a spec asks for, itself or through what it shares parameters with."""
    while isinstance(spec, tq.SharedQuantizationSpec):
        source = spec.edge_or_node
        user = source[1] if isinstance(source, tuple) else source
        annotation = tq.annotation_of(user)
        assert annotation is not None
        spec = annotation.input_qspec_map[source[0]] if isinstance(source, tuple) else annotation.output_qspec
    return spec.dtype, spec.quant_min, spec.quant_max


def edges_after(region: Region, inputs: set[str]) -> dict[str, list[str]]:
    """For each operator of a converted region: what it reads, and from which integers.

    Args:
        region: the converted region.
        inputs: what its inputs were when it was prepared. A subgraph gets others, for what is stored.
    """
    found: dict[str, list[str]] = {}
    constants = constant_nodes(region.module.graph)
    for node in _operators(region):
        for source in [] if _is_machinery(node) else _tensors(node):
            qparams = _qparams_of(source) if _is_machinery(source) else None
            while _is_machinery(source):
                source = source.all_input_nodes[0]
            is_stored = source in constants or (source.op == "placeholder" and source.name not in inputs)
            name = "stored" if is_stored else source.name
            found.setdefault(node.name, []).append(name if qparams is None else f"{name} as {qparams}")
    return found


def _qparams_of(dequantize: Node) -> tuple[Any, ...]:
    """The integers that something is dequantized from."""
    names = [argument.name for argument in dequantize.target._schema.arguments]  # type: ignore[union-attr]
    return tuple(dequantize.args[names.index(n)] for n in ("dtype", "quant_min", "quant_max"))


def inputs_of(region: Region) -> set[str]:
    """The names of the inputs of a region."""
    return {node.name for node in region.module.graph.nodes if node.op == "placeholder"}


def _operators(region: Region) -> list[Node]:
    """The calls of operators, but of those that compute what is stored.

    Those that run subgraphs are left out, since more may be handed into a subgraph.
    """
    constants = constant_nodes(region.module.graph)
    nodes = [node for node in region.module.graph.nodes if node.op == "call_function"]
    return [
        node
        for node in nodes
        if node not in constants and getattr(node.target, "namespace", "") != "higher_order"
    ]


def _annotation(node: Node, region: Region, unreached: set[str]) -> tq.QuantizationAnnotation | None:
    return None if region.name_of(node) in unreached else tq.annotation_of(node)


def _is_machinery(node: Node) -> bool:
    """Whether a node quantizes, dequantizes, or finds parameters when the model runs."""
    source = node.args[0] if node.target is operator.getitem else node
    return str(getattr(source, "target", "")).startswith("quantized_decomposed.")


def _tensors(node: Node) -> list[Node]:
    return [value for value in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(value, Node)]


class Recording(torch.fx.Interpreter):
    """Runs a graph and keeps the value of each node."""

    def __init__(self, model: GraphModule) -> None:
        super().__init__(model, garbage_collect_values=False)


def values_in(model: GraphModule, *inputs: torch.Tensor) -> dict[str, Any]:
    """The value of each node of the outermost graph, by name."""
    recording = Recording(model)
    with torch.no_grad():
        recording.run(*inputs)
    return {node.name: value for node, value in recording.env.items()}


def untouched(model: GraphModule) -> list[str]:
    """The nodes of a converted graph that nothing quantized leads to."""
    touched: set[Node] = set()
    for node in model.graph.nodes:
        runs_subgraphs = getattr(node.target, "namespace", "") == "higher_order"
        if _is_machinery(node) or runs_subgraphs or touched.intersection(node.all_input_nodes):
            touched.add(node)
    return [node.name for node in model.graph.nodes if node not in touched and node.op == "call_function"]


# ----------------------------------------------------------------------------------------------------------
# The properties
# ----------------------------------------------------------------------------------------------------------


@examples(MANY)
@given(random_models(with_control_flow=True), quantizer_kinds)
def test_what_is_annotated_is_quantized_and_nothing_else(model: RandomModel, kind: int) -> None:
    """Each annotated edge reads integers as asked, each other one the tensor itself; shapes are kept."""
    x = model.example
    prepared = calibrated(model, quantizer_for(kind))
    converted = tq.convert_pt2e(prepared, unseen="float")
    for before, after in zip(outputs(model, x), outputs(converted, x), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    unreached = {row.node for row in tq.ledger_of(converted) if row.code == "never_reached"}
    for old, new in zip(regions(prepared), regions(converted), strict=True):
        assert edges_after(new, inputs_of(old)) == edges_asked(old, unreached)


@examples(MANY)
@given(random_models(with_control_flow=True), quantizer_kinds)
def test_what_nothing_quantized_leads_to_is_bit_equal(model: RandomModel, kind: int) -> None:
    """A value that no quantized tensor goes into is, to the last bit, that of the float model."""
    x = model.example
    exported = export(model, x)
    converted = tq.convert_pt2e(
        tq.calibrate(prepare_leniently(exported, quantizer_for(kind)), [(x,)]), unseen="float"
    )
    # BatchNorm is folded in both.
    reference = values_in(tq.convert_pt2e(tq.prepare_pt2e(exported, Nothing())), x)
    found = values_in(converted, x)
    for name in (name for name in untouched(converted) if name in reference):  # a backend may add steps
        pairs = zip(pytree.tree_leaves(found[name]), pytree.tree_leaves(reference[name]), strict=True)
        assert all(torch.equal(left, right) for left, right in pairs if isinstance(left, torch.Tensor))


@examples(SOME)
@given(random_models(with_control_flow=True), quantizer_kinds)
def test_converting_is_deterministic(model: RandomModel, kind: int) -> None:
    """Prepared, calibrated and converted twice, a program gives the same graph and the same bits."""
    x = model.example
    exported = export(model, x)
    first, second = (
        tq.convert_pt2e(
            tq.calibrate(prepare_leniently(exported, quantizer_for(kind)), [(x,)]), unseen="float"
        )
        for _ in range(2)
    )
    assert [region.module.code for region in regions(first)] == [
        region.module.code for region in regions(second)
    ]
    assert list(first.state_dict()) == list(second.state_dict())
    for left, right in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    assert str(tq.ledger_of(first)) == str(tq.ledger_of(second))


@examples(SOME)
@given(random_models(with_control_flow=True), quantizer_kinds)
def test_the_flow_leaves_the_exported_model_alone(model: RandomModel, kind: int) -> None:
    """Graph, weights and outputs of the exported program are the same before and after."""
    x = model.example
    exported = export(model, x)
    graphs = exported.graph_module.print_readable(print_output=False)
    state = {name: tensor.clone() for name, tensor in exported.state_dict.items()}
    before = outputs(exported.module(), x)
    prepared = prepare_leniently(exported, quantizer_for(kind))
    tq.convert_pt2e(tq.calibrate(prepared, [(x,)]), unseen="float")
    assert exported.graph_module.print_readable(print_output=False) == graphs
    assert list(exported.state_dict) == list(state)
    assert all(torch.equal(exported.state_dict[name], state[name]) for name in state)
    for old, new in zip(before, outputs(exported.module(), x), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("kind", [0, 1], ids=["static", "dynamic"])
@examples(SOME)
@given(model=random_models(with_control_flow=True))
def test_quantization_stays_near_the_float_model(model: RandomModel, kind: int) -> None:
    """A random graph that XNNPACK quantizes stays near it: noise is less than a fifth of the signal."""
    x = model.example
    converted = tq.convert_pt2e(calibrated(model, quantizer_for(kind)), unseen="float")
    for reference, other in zip(outputs(model, x), outputs(converted, x), strict=True):
        if reference.norm() > 1e-3:
            assert sqnr(reference, other) >= LEAST_SQNR
        else:
            torch.testing.assert_close(other, reference, atol=1e-2, rtol=0)


@examples(FEW)
@given(random_models(with_control_flow=True), quantizer_kinds)
def test_a_saved_model_gives_the_same_bits(model: RandomModel, kind: int) -> None:
    """A converted graph that is exported, saved and loaded again gives outputs equal to the last bit."""
    x = model.example
    converted = tq.convert_pt2e(calibrated(model, quantizer_for(kind)), unseen="float")
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(converted, (x,)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for old, new in zip(outputs(converted, x), outputs(loaded, x), strict=True):
        assert torch.equal(old, new)
