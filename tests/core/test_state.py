"""Models with state: what they keep from call to call moves in the quantized model as in the float model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

import torchquilt as tq
from strategies import INT8, ByFunction, Fn, Nothing, calls, export, normal, outputs_of, quantize, sqnr
from torchquilt.spec.annotation import QuantizationAnnotation
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from unharmed import unharmed


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere, per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, **asked))


# ----------------------------------------------------------------------------------------------------------
# Models with state
# ----------------------------------------------------------------------------------------------------------


def counter(self: Any, x: torch.Tensor) -> Any:
    """An int that is read before and after it is written, and returned."""
    before = self.calls + 0
    self.calls.add_(1)
    return self.fc(x), before, self.calls


def last(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Copies over the whole buffer what it computed."""
    old = self.memory.clone()
    self.memory.copy_(self.fc(x))
    return old + self.memory


def average(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Quantized readers before and after a chain of writes."""
    before = self.fc(self.memory + x)
    self.memory.mul_(0.5).add_(x)
    return before + self.fc(self.memory)


def returned(self: Any, x: torch.Tensor) -> torch.Tensor:
    """The buffer itself is the output."""
    self.memory.add_(self.fc(x))
    return self.memory


def rebound(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A buffer that is assigned anew, which export makes a copy into it of."""
    self.memory = self.memory * 0.5 + self.fc(x)
    return self.memory + x


def window(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A sliding window of inputs, as in streaming convolutions."""
    longer = torch.cat([self.memory[1:], x[:1]])
    self.memory.copy_(longer)
    return self.fc(longer)


def slices(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Writes into a part of a cache at a fixed position, and reads all of it."""
    key = self.fc(x)
    self.cache[2:4] = key
    return self.cache.sum(0) + key


def index_put(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Writes into a cache where a buffer of ints says, and feeds all of it into a quantized operator."""
    self.positions.copy_((self.positions + 1) % 8)
    self.cache[self.positions] = self.fc(x)
    return self.out(self.cache)


def index_copy(self: Any, x: torch.Tensor) -> torch.Tensor:
    """The same by index_copy_, with a product over the cache."""
    self.positions.add_(1).remainder_(8)
    self.cache.index_copy_(0, self.positions, self.fc(x))
    return self.cache @ x.t()


def two_names(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Written under one name, read and written under another."""
    self.memory.add_(self.fc(x))
    doubled = self.alias * 2
    self.alias.mul_(0.5)
    return doubled + self.memory


def whole_and_part(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A buffer that is a part of another one, read before and after that is written."""
    before = self.fc(self.part)
    self.cache.add_(1)
    return before + self.fc(self.part) * x


def without_gradients(self: Any, x: torch.Tensor) -> torch.Tensor:
    """State that moves in a region of its own, as statistics do."""
    hidden = self.fc(x)
    with torch.no_grad():
        self.calls += 1
        self.memory.copy_(0.5 * self.memory + self.out(hidden))
    return hidden + self.memory


def nested(self: Any, x: torch.Tensor) -> Any:
    """Buffers of modules inside of modules."""
    return self.out(self.inner(x)), self.other(x)


def attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    """One step of decoding: keys and values go into a static cache, which all steps so far are read from."""
    position = self.calls.clone()
    self.calls.add_(1)
    query, key, value = self.fc(x), self.out(x), self.fc(x) * 2
    self.keys.index_copy_(0, position, key)
    self.values.index_copy_(0, position, value)
    seen = torch.arange(8) <= position
    scores = (query @ self.keys.t()).masked_fill(~seen, float("-inf"))
    return self.out(torch.softmax(scores, -1) @ self.values)


@attrs.frozen
class Case:
    """A model with state.

    Args:
        forward: what it does.
        rows: of its inputs.
        mutated: the buffers that it writes to, by the names that export knows them by.
        strict: how it is exported.
    """

    forward: Callable[..., Any]
    mutated: tuple[str, ...]
    rows: int = 2
    strict: bool = False

    def model(self) -> nn.Module:
        """A new one, which has what any of the functions asks for."""
        torch.manual_seed(0)
        parts = {"fc": nn.Linear(4, 4), "out": nn.Linear(4, 4)}
        model = Fn(self.forward, **parts, cache=torch.zeros(8, 4), memory=torch.zeros(2, 4))
        model.register_buffer("calls", torch.zeros(1, dtype=torch.int64))
        model.register_buffer("positions", torch.tensor([0, 3]))
        model.register_buffer("keys", torch.zeros(8, 4))
        model.register_buffer("values", torch.zeros(8, 4), persistent=False)
        if self.forward is two_names:
            model.register_buffer("alias", model.memory)
        if self.forward is whole_and_part:
            model.register_buffer("part", model.cache[2:4])
        if self.forward is nested:
            model.inner, model.other = CASES["returned"].model(), CASES["counter"].model()
        return model.eval()

    def batches(self) -> list[tuple[torch.Tensor]]:
        """Inputs for some steps."""
        return [(normal(self.rows, 4, seed=seed),) for seed in range(4)]


CASES = {
    case.forward.__name__: case
    for case in (
        Case(counter, ("calls",)),
        Case(last, ("memory",)),
        Case(average, ("memory",), strict=True),
        Case(returned, ("memory",)),
        Case(rebound, ("memory",)),
        Case(window, ("memory",)),
        Case(slices, ("cache",), strict=True),
        Case(index_put, ("cache", "positions")),
        Case(index_copy, ("cache", "positions")),
        Case(two_names, ("alias",), strict=True),
        Case(whole_and_part, ("cache",)),
        Case(without_gradients, ("calls", "memory")),
        Case(nested, ("inner.memory", "other.calls"), strict=True),
        Case(attention, ("calls", "keys", "values"), rows=1),
    )
}
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def exported(name: str) -> ExportedProgram:
    """Exported once. Nothing may move its state, which a test shows of each step of the flow."""
    case = CASES[name]
    with torch.enable_grad():  # only then is a region without gradients one of its own
        return export(case.model(), *case.batches()[0], strict=case.strict)


def quantized(name: str, quantizer: object) -> GraphModule:
    """The whole flow, calibrated with the steps of the case."""
    prepared = tq.prepare_pt2e(exported(name), quantizer, activation_observer="minmax")
    return tq.convert_pt2e(tq.calibrate(prepared, CASES[name].batches()))


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    """As state is used: otherwise torch itself cannot copy a buffer that was computed from parameters."""
    with torch.no_grad():
        yield


def tensors(value: Any) -> list[torch.Tensor]:
    """Copies of what was returned, flat: a returned buffer moves on."""
    return [leaf.clone() for leaf in pytree.tree_leaves(value)]


def assert_near(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Floats are near, everything else is equal."""
    for one, other in zip(found, expected, strict=True):
        if one.is_floating_point():
            assert sqnr(other, one) > 30
        else:
            assert torch.equal(one, other)


# ----------------------------------------------------------------------------------------------------------
# Step by step
# ----------------------------------------------------------------------------------------------------------


@every_case
def test_state_that_is_not_quantized_moves_exactly(name: str) -> None:
    """Without annotations, every output and buffer is that of the float model, bit for bit."""
    reference, found = CASES[name].model(), quantized(name, Nothing())
    for (x,) in CASES[name].batches():
        pairs = zip(tensors(found(x)), tensors(reference(x)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    for buffer in CASES[name].mutated:
        assert torch.equal(found.get_buffer(buffer), reference.get_buffer(buffer))


@every_case
@pytest.mark.parametrize("asked", [{}, {"is_dynamic": True}], ids=["static", "dynamic"])
def test_state_of_a_quantized_model_stays_near(name: str, asked: dict[str, bool]) -> None:
    """Over several steps, outputs and float buffers keep close to the float model, and ints are equal."""
    reference, found = CASES[name].model(), quantized(name, xnnpack(**asked))
    assert calls(found, "quantize_per")
    for (x,) in CASES[name].batches():
        assert_near(tensors(found(x)), tensors(reference(x)))
    buffers = [[model.get_buffer(buffer) for buffer in CASES[name].mutated] for model in (found, reference)]
    assert_near(*buffers)


@every_case
def test_a_loaded_model_goes_on_in_the_same_way(name: str, tmp_path: Path) -> None:
    """Exported again, saved and loaded, it starts where it was saved and gives the same bits at each step."""
    found = quantized(name, xnnpack())
    first, *rest = CASES[name].batches()
    found(*first)
    tq.save(found, tmp_path / "model.pt2", first)
    loaded = tq.load(tmp_path / "model.pt2").module()
    for batch in rest:
        pairs = zip(tensors(loaded(*batch)), tensors(found(*batch)), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    for buffer in CASES[name].mutated:
        assert torch.equal(loaded.get_buffer(buffer), found.get_buffer(buffer))


@every_case
def test_the_signature_names_the_same_buffers(name: str) -> None:
    """buffers_to_mutate of the program that the quantized model is exported to is that of the float model."""
    again = torch.export.export(quantized(name, xnnpack()), CASES[name].batches()[0])
    mutated = again.run_decompositions({}).graph_signature.buffers_to_mutate
    assert set(mutated.values()) == set(CASES[name].mutated)


@every_case
def test_the_flow_does_not_move_the_state_of_the_float_model(name: str) -> None:
    """Prepared, calibrated and converted, each step leaves its buffers where they were."""
    with unharmed(exported(name)):
        prepared = tq.prepare_pt2e(exported(name), xnnpack())
        tq.calibrate(prepared, CASES[name].batches())
        found = tq.convert_pt2e(prepared)
        found(*CASES[name].batches()[0])


@every_case
def test_calibration_leaves_no_trace(name: str) -> None:
    """The converted model starts from the exported state, and the prepared one goes on from its own."""
    prepared = tq.prepare_pt2e(exported(name), xnnpack())
    tq.calibrate(prepared, CASES[name].batches())
    moved = {buffer: prepared.get_buffer(buffer).clone() for buffer in CASES[name].mutated}
    found = tq.convert_pt2e(prepared)
    for buffer in CASES[name].mutated:
        assert torch.equal(found.get_buffer(buffer), CASES[name].model().get_buffer(buffer))
        assert torch.equal(prepared.get_buffer(buffer), moved[buffer])


# ----------------------------------------------------------------------------------------------------------
# Where the state comes from, and how it is stored
# ----------------------------------------------------------------------------------------------------------


def test_a_prepared_model_may_be_run_with_gradients() -> None:
    """Called without no_grad, a buffer gets a history that cannot be copied; convert starts afresh."""
    with torch.enable_grad():
        prepared = tq.prepare_pt2e(export(CASES["returned"].model(), normal(2, 4)), xnnpack())
        prepared(normal(2, 4))
        found = tq.convert_pt2e(prepared)
    assert torch.equal(found.get_buffer("memory"), torch.zeros(2, 4))


def test_a_float_model_that_was_run_before_is_quantized_from_where_it_is() -> None:
    """Also where it was run with gradients, so that its buffer has a history."""
    x = normal(2, 4)
    program = export(CASES["returned"].model(), x)
    module = program.module()
    with torch.enable_grad():
        module(x)
    for model in (program, module):
        found = tq.convert_pt2e(tq.prepare_pt2e(model, Nothing()))
        assert torch.equal(found.get_buffer("memory"), module.get_buffer("memory"))
        assert torch.equal(found(x), CASES["returned"].forward(CASES["returned"].model(), x) * 2)


def test_a_buffer_that_is_not_saved_is_still_not_saved() -> None:
    """register_buffer(persistent=False) holds for the converted model as well."""
    found = quantized("attention", xnnpack())
    assert "keys" in found.state_dict()
    assert "values" not in found.state_dict()


def test_parts_of_written_memory_without_a_whole_are_refused() -> None:
    """Two buffers that overlap, of which neither is all of the memory, are an error that names both."""
    model = Fn(lambda self, x: self.left.add_(1).sum() + self.right + x)
    memory = torch.zeros(6)
    model.register_buffer("left", memory[:4])
    model.register_buffer("right", memory[2:])
    program = export(model, normal(4))
    with unharmed(program), pytest.raises(tq.ModelError, match="several of its tensors") as caught:
        tq.prepare_pt2e(program, Nothing())
    assert caught.value.node == "left, right"


# ----------------------------------------------------------------------------------------------------------
# Tensors that are written
# ----------------------------------------------------------------------------------------------------------


def written_afterwards(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A view of a tensor that is written, read before and after that."""
    hidden = self.fc(x)
    view = hidden.view(-1)
    before = view.sum()
    hidden.relu_()
    return before + view


def written_through_a_view(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A row is written by way of a view of a view."""
    hidden = self.fc(x)
    whole = hidden.view(2, 4)
    whole[0].zero_()
    return hidden * 2


def written_and_not_read(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A part of a buffer is written by way of a view, and not read in this call."""
    self.memory.view(-1)[:2].zero_()
    return x * 2


@pytest.mark.parametrize(
    ("forward", "part"),
    [(written_afterwards, "view"), (written_through_a_view, "linear"), (written_and_not_read, "view")],
    ids=["read", "written", "not read"],
)
def test_a_tensor_that_is_written_later_cannot_be_quantized(forward: Any, part: str) -> None:
    """Readers would get what it was before, or the write would go into a copy; the error names the tensor."""
    program = export(Fn(forward, fc=nn.Linear(4, 4), memory=torch.zeros(2, 4)), normal(2, 4))
    with unharmed(program), pytest.raises(tq.AnnotationError, match="writes into it") as caught:
        tq.prepare_pt2e(program, outputs_of(part, name="mine"))
    assert caught.value.node == part
    assert caught.value.quantizer == "mine"


def test_an_input_that_the_operator_writes_into_cannot_be_quantized() -> None:
    """The write would go into a copy."""

    def decide(node: Node) -> QuantizationAnnotation | None:
        return QuantizationAnnotation({node.args[0]: INT8}) if "copy_" in str(node.target) else None

    with pytest.raises(tq.AnnotationError, match="writes into it"):
        tq.prepare_pt2e(exported("last"), ByFunction(decide))


def test_a_view_that_is_read_only_before_the_write_is_quantized() -> None:
    """The old rows of a sliding window are gone once the new ones are there; a copy of them is as good."""
    found = quantized("window", outputs_of("slice"))
    reference = CASES["window"].model()
    assert calls(found, ".quantize_per_tensor")
    for (x,) in CASES["window"].batches():
        assert_near(tensors(found(x)), tensors(reference(x)))


def test_readers_before_and_after_a_write_are_quantized_by_themselves() -> None:
    """One tensor, one set of parameters, two moments: each linear gets what the tensor is when it runs."""

    def decide(node: Node) -> QuantizationAnnotation | None:
        if "linear" not in str(node.target):
            return None
        return QuantizationAnnotation({node.args[0]: INT8})

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        hidden = x * 2
        before = self.fc(hidden)
        hidden[0] = 3
        return before - self.fc(hidden)

    torch.manual_seed(0)
    model, x = Fn(forward, fc=nn.Linear(4, 4)).eval(), normal(2, 4)
    found = quantize(model, ByFunction(decide), x)
    first, second = calls(found, ".quantize_per_tensor")
    assert first.args == second.args
    assert sqnr(model(x), found(x)) > 30


@pytest.mark.parametrize("name", ["index_put", "without_gradients"])
def test_state_keeps_nothing_else_in_float(name: str) -> None:
    """A linear over a cache that was just written is quantized, and so is one beside a region that writes."""
    ledger = tq.ledger_of(quantized(name, xnnpack()))
    assert [row.is_quantized for row in ledger if row.op == "aten.linear.default"] == [True, True]


def test_many_writes_cost_no_more_than_their_number() -> None:
    """Asking about the memory of each node looks at each node a bounded number of times."""
    copies = []
    for length in (20, 40):
        model = Fn(
            lambda self, x, length=length: [self.memory.add_(x) for _ in range(length)], memory=normal(4)
        )
        graph = export(model, normal(4)).module().graph
        copies.append(_alias_questions(graph))
    assert copies[1] <= 2.2 * copies[0]


def _alias_questions(graph: torch.fx.Graph) -> int:
    from torchquilt.graph import aliasing as memory

    asked = 0
    original = memory.aliased_inputs

    def counted(node: Node) -> tuple[Node, ...]:
        nonlocal asked
        asked += 1
        return original(node)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "aliased_inputs", counted)
        found = memory.Memory(graph)
        for node in graph.nodes:
            found.output_can_be_copied(node)
    return asked


def test_copies_of_a_model_have_state_of_their_own() -> None:
    """A deep copy of a converted model counts by itself."""
    found = quantized("counter", xnnpack())
    other = copy.deepcopy(found)
    (x,) = CASES["counter"].batches()[0]
    found(x)
    assert int(found.get_buffer("calls")) == 1
    assert int(other.get_buffer("calls")) == 0
