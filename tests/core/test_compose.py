"""ComposableQuantizer: the first to claim a node keeps it, and no quantizer changes another's decision."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule, Node

import torchquilt as tq
from strategies import (
    INT8,
    WEIGHT,
    Fn,
    annotated,
    calls,
    decisions,
    export,
    normal,
    outputs_of,
    prepare,
    weights_of,
)
from torchquilt.spec.annotation import ANNOTATION_KEY
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

UINT8 = tq.QuantizationSpec("uint8")
X = normal(3, 6)


def mlp() -> GraphModule:
    """An exported model of three linears with relu and tanh between."""
    layers = [nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)]
    return export(nn.Sequential(*layers), X).module()


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


def owners(quantizer: tq.Quantizer, model: GraphModule | None = None) -> dict[str, str]:
    """Node name → who annotated it."""
    model = model or mlp()
    quantizer.annotate(model)
    return {name: found.quantizer for name, found in annotated(model).items()}


class Vandal(tq.Quantizer):
    """Does something to the annotations of others."""

    def __init__(self, deed: Any) -> None:
        self.deed = deed

    def annotate(self, model: GraphModule) -> GraphModule:
        """Do it to the first linear."""
        self.deed(calls(model, "linear")[0])
        return model


# ----------------------------------------------------------------------------------------------------------
# Who gets what
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["one", "two"])
def test_who_comes_first_keeps_a_node(first: str) -> None:
    """Two quantizers that want the same nodes: the first one has them, whichever that is."""
    both = [outputs_of("linear", name="one"), outputs_of("linear", spec=UINT8, name="two")]
    order = both if first == "one" else both[::-1]
    assert set(owners(tq.ComposableQuantizer(order)).values()) == {first}


def test_the_second_one_gets_what_is_left() -> None:
    """Nodes that the first does not want go to the next."""
    composed = tq.ComposableQuantizer([outputs_of("tanh", name="one"), xnnpack()])
    found = owners(composed)
    assert found["tanh"] == "one"
    assert found["linear"] == found["linear_2"] == "XNNPACKQuantizer"


def test_compositions_nest() -> None:
    """A composition within a composition has the precedence of its place, and the outcome of a flat one."""
    one, two, three = outputs_of("tanh", name="one"), outputs_of("relu", name="two"), xnnpack()
    flat, nested, other = mlp(), mlp(), mlp()
    tq.ComposableQuantizer([one, two, three]).annotate(flat)
    tq.ComposableQuantizer([tq.ComposableQuantizer([one, two]), three]).annotate(nested)
    tq.ComposableQuantizer([one, tq.ComposableQuantizer([two, tq.ComposableQuantizer([three])])]).annotate(
        other
    )
    assert decisions(flat) == decisions(nested) == decisions(other)


def test_an_empty_composition_quantizes_nothing() -> None:
    """No quantizers, no annotations, no capabilities; the model runs as before."""
    empty = tq.ComposableQuantizer([])
    assert owners(empty) == {}
    assert len(empty.quantization_capabilities()) == 0
    model = nn.Linear(6, 6).eval()
    assert torch.equal(tq.convert_pt2e(prepare(model, empty, X))(X), model(X))


def test_a_composition_of_one_is_that_one() -> None:
    """Annotations, capabilities and the converted model are those of the only quantizer."""
    alone, composed = mlp(), mlp()
    xnnpack().annotate(alone)
    tq.ComposableQuantizer([xnnpack()]).annotate(composed)
    assert decisions(alone) == decisions(composed)
    only = tq.ComposableQuantizer([xnnpack()])
    assert only.quantization_capabilities() == xnnpack().quantization_capabilities()


def test_the_same_backend_twice_with_different_intents() -> None:
    """One module static, everything else dynamic, of one backend."""
    composed = tq.ComposableQuantizer(
        [
            XNNPACKQuantizer().set_module_name("0", get_symmetric_quantization_config()),
            xnnpack(is_dynamic=True),
        ]
    )
    model = mlp()
    composed.annotate(model)
    dynamic = [
        next(iter(found.input_qspec_map.values())).is_dynamic
        for name, found in annotated(model).items()
        if name.startswith("linear")
    ]
    assert dynamic == [False, True, True]
    modes = [row.mode for row in composed.quantization_capabilities().filter(nn.Linear)]
    assert set(modes) == {"static", "dynamic"}


def test_an_object_with_annotate_alone_is_a_quantizer() -> None:
    """Nothing has to be derived from; what it annotates is owned by its class."""

    class EveryOtherLinear:
        def annotate(self, model: GraphModule) -> None:
            for node in calls(model, "linear")[::2]:
                node.meta[ANNOTATION_KEY] = tq.QuantizationAnnotation({node.args[1]: WEIGHT})

    mine = EveryOtherLinear()
    composed = tq.ComposableQuantizer([mine, xnnpack(is_dynamic=True)])
    found = owners(composed)
    assert found == {
        "linear": "EveryOtherLinear",
        "linear_1": "XNNPACKQuantizer",
        "linear_2": "EveryOtherLinear",
    }
    prepared = prepare(nn.Linear(6, 6), mine, X)
    assert tq.convert_pt2e(prepared)(X).shape == (3, 6)


def test_an_object_may_say_what_is_folded_and_gives_no_reason_for_inputs() -> None:
    """Methods that it has are asked; for the others it is as any quantizer."""

    class Mine:
        def annotate(self, model: GraphModule) -> None:
            pass

        def folds(self, batch_norm: Node, operator: Node) -> bool:
            return False

    model = mlp()
    (mine,) = tq.ComposableQuantizer([Mine()]).quantizers
    (linear, *_) = calls(model, "linear")
    assert mine.folds(linear, linear) is False
    assert set(mine.rejections(model)) == {node for node in model.graph.nodes if node.op == "call_function"}


def test_a_text_is_the_quantizer_of_that_preset() -> None:
    """As if it had been made by name."""
    (found,) = tq.ComposableQuantizer([" xnnpack : dynamic_int8 "]).quantizers
    assert found == XNNPACKQuantizer.from_preset("dynamic_int8")


def test_a_base_class_called_quantizer_needs_no_bridge() -> None:
    """It is one's own, unless an installed plugin knows it as another library's."""

    class Quantizer:
        def annotate(self, model: GraphModule) -> None:
            for node in calls(model, "linear"):
                tq.annotate_node(node, tq.QuantizationAnnotation({node.args[1]: WEIGHT}))

    class Mine(Quantizer):
        pass

    assert set(owners(tq.ComposableQuantizer([Mine()])).values()) == {"Mine"}


def test_tied_weights_are_split_between_backends() -> None:
    """The issue's own composition takes the embedding with one backend and the linears with the other."""
    ids = torch.tensor([[1, 2, 3]])
    model = nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 6))
    composed = tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack(is_dynamic=True)])
    assert owners(composed, export(model, ids).module()) == {
        "embedding": "ExecuTorchEmbeddingQuantizer",
        "linear": "XNNPACKQuantizer",
    }


# ----------------------------------------------------------------------------------------------------------
# No quantizer changes another's decision
# ----------------------------------------------------------------------------------------------------------

DEEDS = {
    "replaced": lambda node: node.meta.__setitem__(
        ANNOTATION_KEY, tq.QuantizationAnnotation({}, UINT8, quantizer="vandal")
    ),
    "removed": lambda node: node.meta.pop(ANNOTATION_KEY),
    "edited": lambda node: setattr(node.meta[ANNOTATION_KEY], "output_qspec", UINT8),
    "edited in its map": lambda node: node.meta[ANNOTATION_KEY].input_qspec_map.update({node.args[0]: UINT8}),
    "edited in its map by deleting": lambda node: node.meta[ANNOTATION_KEY].input_qspec_map.clear(),
    "set to None": lambda node: node.meta.__setitem__(ANNOTATION_KEY, None),
    "forged": lambda node: node.meta.__setitem__(
        ANNOTATION_KEY, tq.QuantizationAnnotation({}, UINT8, quantizer="XNNPACKQuantizer")
    ),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("deed", DEEDS)
def test_touching_the_annotation_of_another_is_an_error(deed: str, nested: bool) -> None:
    """The error names both quantizers and the node, also when the second is inside of a composition."""
    vandal: tq.Quantizer = Vandal(DEEDS[deed])
    composed = tq.ComposableQuantizer([xnnpack(), tq.ComposableQuantizer([vandal]) if nested else vandal])
    with pytest.raises(tq.CompositionError) as caught:
        composed.annotate(mlp())
    assert caught.value.node == "linear"
    assert "XNNPACKQuantizer" in str(caught.value.quantizer)
    assert "Vandal" in str(caught.value.quantizer)


@pytest.mark.parametrize("deed", DEEDS)
def test_what_was_annotated_before_the_composition_is_kept_from_it_as_well(deed: str) -> None:
    """A first call of a quantizer may have annotated it, or code of the user's own."""
    model = mlp()
    xnnpack().annotate(model)
    with pytest.raises(tq.CompositionError) as caught:
        tq.ComposableQuantizer([Vandal(DEEDS[deed])]).annotate(model)
    assert caught.value.node == "linear"


@pytest.mark.parametrize(
    ("deed", "said"), [("replaced", "changed"), ("removed", "removed"), ("edited", "tried to edit")]
)
def test_the_error_says_how_an_annotation_was_touched(deed: str, said: str) -> None:
    """A quantizer whose annotation has no name is an earlier one."""
    model = mlp()
    (linear, *_) = calls(model, "linear")
    tq.annotate_node(linear, tq.QuantizationAnnotation({}, UINT8))
    with pytest.raises(tq.CompositionError) as caught:
        tq.ComposableQuantizer([Vandal(DEEDS[deed])]).annotate(model)
    assert caught.value.problem == f"Vandal {said} an annotation of an earlier quantizer."


def test_a_quantizer_gives_reasons_for_what_stays_in_float_alone() -> None:
    """Not for what another one has annotated, though it would have taken it."""
    model = mlp()
    outputs_of("linear", name="one").annotate(model)
    linear, relu = calls(model, "linear")[0], calls(model, "relu")[0]
    reasons = xnnpack().set_object_type(nn.ReLU, None).rejections(model)
    assert [reject.code for _, reject in reasons[relu]] == ["excluded_by_intent"]
    assert linear not in reasons


def test_an_annotation_with_a_foreign_input_is_an_error_of_who_wrote_it() -> None:
    """An input that the node does not have is found when it is written, and the error says by whom."""

    class Confused:
        name = "confused"

        def annotate(self, model: GraphModule) -> None:
            first, second, _ = calls(model, "linear")
            second.meta[ANNOTATION_KEY] = tq.QuantizationAnnotation({first: INT8}, quantizer="confused")

    with pytest.raises(tq.AnnotationError) as caught:
        tq.ComposableQuantizer([Confused(), xnnpack()]).annotate(mlp())
    assert caught.value.node == "linear_1"
    assert caught.value.quantizer == "confused"


def test_an_unsigned_annotation_with_a_foreign_input_names_its_author() -> None:
    """The author is known to the composition even where the annotation does not say."""

    class Unsigned:
        def annotate(self, model: GraphModule) -> None:
            first, second, _ = calls(model, "linear")
            second.meta[ANNOTATION_KEY] = tq.QuantizationAnnotation({first: INT8})

    with pytest.raises(tq.AnnotationError) as caught:
        tq.ComposableQuantizer([Unsigned(), xnnpack()]).annotate(mlp())
    assert "Unsigned" in str(caught.value.quantizer)


# ----------------------------------------------------------------------------------------------------------
# The other calls of the protocol, equality
# ----------------------------------------------------------------------------------------------------------


class Validates(tq.Quantizer):
    """Annotates nothing, and refuses a model in which a quantizer has nothing."""

    def __init__(self, name: str, needs: str) -> None:
        self._name = name
        self.needs = needs
        self.seen: list[dict[str, str]] = []

    @property
    def name(self) -> str:
        """The name that was given."""
        return self._name

    def annotate(self, model: GraphModule) -> GraphModule:
        """Leave all in float."""
        return model

    def validate(self, model: GraphModule) -> None:
        """Look at who has what."""
        self.seen.append({name: found.quantizer for name, found in annotated(model).items()})
        if self.needs not in self.seen[-1].values():
            raise tq.AnnotationError(f"{self.needs} has nothing.")


def test_each_quantizer_validates_what_all_of_them_made() -> None:
    """Also those that come first, and those within compositions, see the annotations of everybody."""
    first, inner, last = (Validates(name, "XNNPACKQuantizer") for name in ("first", "inner", "last"))
    composed = tq.ComposableQuantizer(
        [first, tq.ComposableQuantizer([inner, outputs_of("tanh", name="one")]), xnnpack(), last]
    )
    tq.explain(mlp(), composed)
    assert first.seen == inner.seen == last.seen
    assert set(first.seen[0].values()) == {"one", "XNNPACKQuantizer"}


@pytest.mark.parametrize("nested", [False, True])
def test_what_one_quantizer_does_not_accept_is_an_error_in_its_name(nested: bool) -> None:
    """The error of the one that refuses the composed model comes through, and says whose it is."""
    critic: tq.Quantizer = Validates("critic", "somebody")
    composed = tq.ComposableQuantizer(
        [tq.ComposableQuantizer([critic]) if nested else critic, xnnpack(), Validates("other", "never")]
    )
    with pytest.raises(tq.AnnotationError, match="somebody has nothing") as caught:
        tq.prepare_pt2e(mlp(), composed)
    assert caught.value.quantizer == "critic"


def test_compositions_compare_by_value() -> None:
    """Equal quantizers in the same order make equal compositions."""
    one = tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack()])
    assert one == tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack()])
    assert one != tq.ComposableQuantizer([xnnpack(), ExecuTorchEmbeddingQuantizer()])
    assert one != tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack(is_dynamic=True)])
    assert one != tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer()])
    assert one != "something else"


_DYNAMIC_PATTERNS = ("linear", "addmm", "matmul", "conv2d", "conv_transpose2d", "conv2d_pointwise")


def test_compositions_of_objects_that_only_annotate_compare_by_the_objects() -> None:
    """One object is equal to itself, and not to another of its class."""

    class Plain:
        def annotate(self, model: GraphModule) -> GraphModule:
            return model

    one, other = Plain(), Plain()
    assert tq.ComposableQuantizer([one]) == tq.ComposableQuantizer([one])
    assert tq.ComposableQuantizer([one]) != tq.ComposableQuantizer([other])


def test_a_composition_can_be_asked_what_the_flow_asks_its_parts() -> None:
    """It transforms, annotates, and says why the rest stays in float, like any quantizer."""
    composed = tq.ComposableQuantizer(
        [ExecuTorchEmbeddingQuantizer(), xnnpack().set_object_type(nn.ReLU, None)]
    )
    model = mlp()
    transformed = composed.transform_for_annotation(model)
    assert composed.annotate(transformed) is transformed
    linear, relu = calls(transformed, "linear")[0], calls(transformed, "relu")[0]
    assert linear.name in annotated(transformed)
    assert relu.name not in annotated(transformed)
    reasons = composed.rejections(transformed)
    assert linear not in reasons
    assert next((who, reject.code) for who, reject in reasons[relu]) == (
        "XNNPACKQuantizer",
        "excluded_by_intent",
    )


def test_one_quantizer_that_asks_for_folding_is_enough() -> None:
    """One that refuses decides where none asks; where none says anything, it is left open."""

    class Saying(tq.Quantizer):
        def __init__(self, answer: bool | None) -> None:
            self.answer = answer

        def folds(self, batch_norm: Node, operator: Node) -> bool | None:
            return self.answer

        def annotate(self, model: GraphModule) -> GraphModule:
            return model

    def answer(*answers: bool | None) -> bool | None:
        node = next(iter(mlp().graph.nodes))
        return tq.ComposableQuantizer([Saying(one) for one in answers]).folds(node, node)

    assert answer(None, False, True) is True
    assert answer(None, False) is False
    assert answer(None, None) is None


def test_a_composition_leaves_a_comparison_with_others_to_them() -> None:
    """As all values do."""
    assert tq.ComposableQuantizer([xnnpack()]) == mock.ANY


def test_capabilities_of_a_composition_keep_who_said_what() -> None:
    """The rows of all quantizers in order of precedence, with their backends."""
    composed = tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack(is_dynamic=True)])
    found = composed.quantization_capabilities()
    assert [(row.backend, row.pattern) for row in found] == [
        ("executorch_embedding", "embedding_byte"),
        *(("xnnpack", name) for name in _DYNAMIC_PATTERNS),
    ]


# ----------------------------------------------------------------------------------------------------------
# Order
# ----------------------------------------------------------------------------------------------------------

DISJOINT = [
    outputs_of("tanh", name="tanh"),
    outputs_of("sigmoid", name="sigmoid", spec=UINT8),
    weights_of("linear", name="linear"),
    outputs_of("aten.neg", name="neg"),
    XNNPACKQuantizer().set_object_type(torch.add, get_symmetric_quantization_config()),
    ExecuTorchEmbeddingQuantizer(),
]


def everything(self: Any, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Something for each of the disjoint quantizers, twice."""
    y = torch.tanh(self.fc(x)) + self.emb(ids)
    return torch.sigmoid(self.fc(-y)) + torch.tanh(-x)


@functools.cache
def everything_exported() -> torch.export.ExportedProgram:
    """Exported once; each .module() is a model of its own."""
    return export(Fn(everything, fc=nn.Linear(6, 6), emb=nn.Embedding(4, 6)), X, torch.tensor([0, 1, 2]))


@settings(max_examples=40)
@given(st.permutations(range(len(DISJOINT))), st.integers(1, len(DISJOINT)))
def test_disjoint_quantizers_compose_in_any_order(order: list[int], split: int) -> None:
    """Quantizers that want different nodes come to the same annotations in any order and any nesting."""
    exported = everything_exported()
    reference, model = exported.module(), exported.module()
    tq.ComposableQuantizer(DISJOINT).annotate(reference)
    mixed = [DISJOINT[number] for number in order]
    tq.ComposableQuantizer([tq.ComposableQuantizer(mixed[:split]), *mixed[split:]]).annotate(model)
    assert len(annotated(model)) == 10
    assert decisions(model) == decisions(reference)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_follows_its_input_between_backends_does_not_depend_on_their_order(
    order: tuple[int, int],
) -> None:
    """A pool of one quantizer behind a convolution of another is quantized whichever comes first."""
    model = Fn(
        lambda self, x: self.second(nn.functional.max_pool2d(self.first(x), 2)),
        first=nn.Conv2d(3, 4, 3),
        second=nn.Conv2d(4, 4, 3),
    )
    config = get_symmetric_quantization_config()
    parts = (
        XNNPACKQuantizer().set_module_name("first", config),
        XNNPACKQuantizer().set_object_type("max_pool2d", config).set_module_name("second", config),
    )
    quantizer = tq.ComposableQuantizer([parts[index] for index in order])
    ledger = tq.explain(export(model, normal(1, 3, 12, 12)), quantizer)
    assert [row.op for row in ledger.left_in_float] == []
