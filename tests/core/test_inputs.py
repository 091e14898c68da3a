"""Inputs and outputs: every form that export takes, sizes that vary, and what does not fit."""

from __future__ import annotations

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

import torchquilt as tq
from strategies import INT8, ByFunction, Nothing, calls, export, normal, quantize, sqnr
from torchquilt.observers import HistogramObserver, MinMaxObserver, Observer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))


# ----------------------------------------------------------------------------------------------------------
# Models with inputs of every form
# ----------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A named tuple."""

    left: Any
    right: Any


pytree._register_namedtuple(Pair, serialized_type_name="tests.inputs.Pair")


@attrs.define
class Output:
    """An object that is registered with torch, as the outputs of Hugging Face models are."""

    y: Any
    hidden: Any = None


pytree.register_pytree_node(
    Output,
    lambda output: ([output.y, output.hidden], None),
    lambda parts, _: Output(*parts),
    serialized_type_name="tests.inputs.Output",
    flatten_with_keys_fn=lambda output: (
        [(pytree.GetAttrKey("y"), output.y), (pytree.GetAttrKey("hidden"), output.hidden)],
        None,
    ),
)


class Linear(nn.Module):
    """One layer. Each model below has it, and a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)


class Keywords(Linear):
    """Keywords with defaults, tensors among them or not."""

    def forward(
        self, x: Any, *, scale: Any = None, shift: Any = None, mode: str = "add", times: int = 2
    ) -> Any:
        """As the keywords say."""
        y = self.fc(x)
        y = y if scale is None else y * scale
        if shift is not None:
            y = y + shift if mode == "add" else y - shift
        return y * times


class Three(Linear):
    """Three tensors, by position or by name."""

    def forward(self, x: Any, scale: Any, shift: Any) -> Any:
        """fc(x) * scale + shift."""
        return self.fc(x) * scale + shift


class Nested(Linear):
    """A dict of lists of tuples, and None in a list."""

    def forward(self, batch: Any, others: Any) -> Any:
        """Everything that was returned, in containers."""
        (first, second), *_ = batch["a"]
        y = self.fc(first) + second + others[1]["k"]
        return {"y": y, "input": first, "none": None, "n": 3, "list": [y.neg(), (y * 2,)]}


class Objects(Linear):
    """A registered object and a named tuple, in and out."""

    def forward(self, output: Output, pair: Pair) -> Any:
        """The same types."""
        return Output(self.fc(output.y) + pair.left, hidden=[output.y, None]), Pair(pair.right, output.hidden)


class Numbers(Linear):
    """Ints, floats, bools, texts and None, which export takes for fixed."""

    def forward(self, x: Any, n: int, f: float, flag: bool, name: str, none: None) -> Any:
        """Some of them come back."""
        y = self.fc(x) * n + f
        y = torch.relu(y) if flag else y
        return (y + 1 if name == "one" else y), n, f, flag, none, x.shape[0]


class PassedThrough(Linear):
    """Inputs that are returned as they are, one of them quantized on the way, and one without readers."""

    def forward(self, x: Any, other: Any, unused: Any) -> Any:
        """fc(x) twice, and the inputs."""
        y = self.fc(x)
        return y, x, other, {"again": y}


@attrs.frozen
class Case:
    """A model with inputs.

    Args:
        model: its class.
        args, kwargs: its inputs.
        strict: how it is exported.
    """

    model: type[nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = attrs.field(factory=dict)
    strict: bool = False


def t(seed: int) -> torch.Tensor:
    """A tensor of two rows."""
    return normal(2, 4, seed=seed)


CASES = {
    "keywords": Case(Keywords, (t(0),), {"scale": t(1), "shift": t(2), "mode": "sub", "times": 3}),
    "keywords, strict": Case(Keywords, (t(0),), {"scale": t(1), "shift": t(2)}, strict=True),
    "keywords with defaults": Case(Keywords, (t(0),), {"shift": t(2)}),
    "keywords alone": Case(Three, (), {"x": t(0), "scale": t(1), "shift": t(2)}),
    "keywords in another order": Case(Three, (), {"shift": t(2), "x": t(0), "scale": t(1)}),
    "nested": Case(Nested, ({"a": [(t(0), t(1))]}, [None, {"k": t(2)}])),
    "nested, strict": Case(Nested, ({"a": [(t(0), t(1))]}, [None, {"k": t(2)}]), strict=True),
    "ordered dict": Case(Nested, (OrderedDict(a=((t(0), t(1)),)), [None, OrderedDict(k=t(2))])),
    "objects": Case(Objects, (Output(t(0)), Pair(t(1), t(2)))),
    "numbers": Case(Numbers, (t(0), 3, 0.5, True, "one", None)),
    "numbers, strict": Case(Numbers, (t(0), 3, 0.5, False, "two", None), strict=True),
    "passed through": Case(PassedThrough, (t(0), t(1), t(2))),
}
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def exported(name: str) -> ExportedProgram:
    """Exported once."""
    case = CASES[name]
    return torch.export.export(case.model().eval(), case.args, case.kwargs, strict=case.strict)


@functools.cache
def prepared(name: str, static: bool = True) -> GraphModule:
    """Prepared, and calibrated with the inputs of the case."""
    case = CASES[name]
    found = tq.prepare_pt2e(exported(name), xnnpack() if static else Nothing(), activation_observer="minmax")
    found(*case.args, **case.kwargs)
    return found


@functools.cache
def converted(name: str, static: bool = True) -> GraphModule:
    """And converted."""
    return tq.convert_pt2e(prepared(name, static))


def assert_same(found: Any, expected: Any, bound: float | None = None) -> None:
    """The same structure and the same values; with a bound, float tensors that are near."""
    (leaves, structure), (others, other_structure) = map(pytree.tree_flatten, (found, expected))
    assert structure == other_structure
    for one, other in zip(leaves, others, strict=True):
        if not isinstance(one, torch.Tensor):
            assert one == other
            assert type(one) is type(other)
        elif bound is None:
            assert torch.equal(one, other)
        else:
            assert sqnr(other, one) > bound


# ----------------------------------------------------------------------------------------------------------
# In and out
# ----------------------------------------------------------------------------------------------------------


@every_case
def test_a_prepared_model_is_called_as_the_exported_one(name: str) -> None:
    """The same inputs give the same outputs, bit for bit, in the same containers, by the same signature."""
    case, module = CASES[name], exported(name).module()
    assert_same(prepared(name)(*case.args, **case.kwargs), module(*case.args, **case.kwargs))
    for model in (prepared(name), converted(name)):
        assert inspect.signature(model.forward) == inspect.signature(module.forward)


@every_case
def test_a_converted_model_returns_what_the_float_model_does(name: str) -> None:
    """Quantized tensors are near, and everything else is equal; without annotations all is equal."""
    case = CASES[name]
    expected = exported(name).module()(*case.args, **case.kwargs)
    assert calls(converted(name), ".quantize_per_tensor")
    assert_same(converted(name)(*case.args, **case.kwargs), expected, bound=25)
    assert_same(converted(name, static=False)(*case.args, **case.kwargs), expected)


@every_case
@pytest.mark.filterwarnings("ignore:The example inputs of the program are left out")
def test_a_saved_model_is_called_in_the_same_way(name: str, tmp_path: Path) -> None:
    """Exported again and loaded, it takes the same inputs and gives the same bits."""
    case = CASES[name]
    tq.save(torch.export.export(converted(name), case.args, case.kwargs), tmp_path / "model.pt2")
    loaded = tq.load(tmp_path / "model.pt2").module()
    assert_same(loaded(*case.args, **case.kwargs), converted(name)(*case.args, **case.kwargs))


@pytest.mark.parametrize("name", ["keywords", "keywords alone", "keywords in another order"])
def test_keywords_may_come_in_any_order(name: str) -> None:
    """The order in which they are written makes no difference."""
    case = CASES[name]
    turned = dict(reversed(case.kwargs.items()))
    for model in (prepared(name), converted(name)):
        assert_same(model(*case.args, **turned), model(*case.args, **case.kwargs))


def test_an_input_that_is_returned_is_not_quantized_for_that() -> None:
    """The operator reads a quantized copy, and the caller gets back what was handed in."""
    case = CASES["passed through"]
    _, x, other, _ = converted("passed through")(*case.args)
    assert torch.equal(x, case.args[0])
    assert torch.equal(other, case.args[1])


def test_an_input_that_is_quantized_itself_is_returned_quantized() -> None:
    """Annotated as an output, an input is quantized for everybody, the caller included."""

    def decide(node: Node) -> tq.QuantizationAnnotation | None:
        return tq.QuantizationAnnotation({}, INT8) if node.name == "x" else None

    case = CASES["passed through"]
    program = exported("passed through")
    found = tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(program, ByFunction(decide)), [case.args]))
    _, x, other, _ = found(*case.args)
    assert not torch.equal(x, case.args[0])
    assert sqnr(case.args[0], x) > 30
    assert torch.equal(other, case.args[1])


# ----------------------------------------------------------------------------------------------------------
# Inputs that do not fit
# ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[str, Callable[[Case], tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    "too few": ("passed through", lambda case: (case.args[:-1], {})),
    "too many": ("passed through", lambda case: ((*case.args, t(3)), {})),
    "by name": ("passed through", lambda case: (case.args[:-1], {"unused": t(2)})),
    "a keyword too few": ("keywords", lambda case: (case.args, {**case.kwargs, "scale": None})),
    "an unknown keyword": ("keywords", lambda case: (case.args, {**case.kwargs, "more": t(3)})),
    "by position": ("keywords alone", lambda case: (tuple(case.kwargs.values()), {})),
    "a longer list": ("nested", lambda case: (({"a": [(t(0), t(1)), (t(0), t(1))]}, case.args[1]), {})),
    "a further key": ("nested", lambda case: (({**case.args[0], "b": t(3)}, case.args[1]), {})),
    "a list for a tuple": ("nested", lambda case: (({"a": [[t(0), t(1)]]}, case.args[1]), {})),
    "another int": ("numbers", lambda case: ((t(0), 4, *case.args[2:]), {})),
    "another text": ("numbers", lambda case: ((*case.args[:4], "two", None), {})),
    "another shape": ("passed through", lambda case: ((normal(3, 4), *case.args[1:]), {})),
    "another rank": ("passed through", lambda case: ((normal(4), *case.args[1:]), {})),
}


def outcome(model: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str]:
    """The error that calling a model raises."""
    with pytest.raises(Exception) as caught:
        model(*args, **kwargs)
    return type(caught.value).__name__, str(caught.value)


@pytest.mark.parametrize("kind", WRONG)
def test_inputs_that_do_not_fit_are_refused_as_by_the_exported_model(kind: str) -> None:
    """The type and the text of the error are those that torch has for the float model: no check is lost."""
    name, change = WRONG[kind]
    args, kwargs = change(CASES[name])
    expected = outcome(exported(name).module(), args, kwargs)
    assert outcome(prepared(name), args, kwargs) == expected
    assert outcome(converted(name), args, kwargs) == expected


# ----------------------------------------------------------------------------------------------------------
# Sizes that vary
# ----------------------------------------------------------------------------------------------------------


class Sequence(Linear):
    """A model for any number of sequences of any length."""

    def forward(self, x: Any, mask: Any) -> Any:
        """Each position, and what a sequence comes to."""
        hidden = torch.relu(self.fc(x)) * mask.unsqueeze(-1)
        return hidden, hidden.sum(1)


def sequences(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of a size; a few rows of a given seed look like those of any other."""
    return normal(batch, length, 4, seed=seed), torch.ones(batch, length)


@functools.cache
def of_any_size() -> ExportedProgram:
    """For batches of up to 8 and lengths of up to 16."""
    batch, length = Dim("batch", min=0, max=8), Dim("length", min=0, max=16)
    sizes = {0: batch, 1: length}
    return export(Sequence(), *sequences(3, 5), dynamic_shapes={"x": sizes, "mask": sizes})


def quantized_for_any_size(asked: dict[str, bool]) -> GraphModule:
    """Calibrated with some of the sizes."""
    found = tq.prepare_pt2e(of_any_size(), xnnpack(**asked), activation_observer="minmax")
    return tq.convert_pt2e(tq.calibrate(found, [sequences(8, 16, seed=seed) for seed in range(4)]))


modes = pytest.mark.parametrize("asked", [{}, {"is_dynamic": True}], ids=["static", "dynamic"])


@modes
def test_batch_and_sequence_stay_dynamic(asked: dict[str, bool], tmp_path: Path) -> None:
    """One quantized model serves all sizes, one and none among them, before and after it was saved."""
    reference, found = Sequence().eval(), quantized_for_any_size(asked)
    tq.save(found, tmp_path / "model.pt2", sequences(3, 5))
    loaded = tq.load(tmp_path / "model.pt2")
    assert [*loaded.program.range_constraints.values()] == [*of_any_size().range_constraints.values()]
    for batch, length in ((1, 1), (1, 16), (8, 1), (5, 7), (8, 16), (0, 5), (3, 0), (0, 0)):
        inputs = sequences(batch, length, seed=9)
        results, expected = found(*inputs), reference(*inputs)
        assert [one.shape for one in results] == [one.shape for one in expected]
        assert_same(loaded.module()(*inputs), results)
        if batch and length:
            assert sqnr(expected[0], results[0]) > 25


@pytest.mark.parametrize("size", [(9, 5), (3, 17)], ids=str)
def test_a_size_out_of_the_range_is_refused(size: tuple[int, int]) -> None:
    """By the guards of the exported model, which prepare and convert leave in place."""
    program = of_any_size()
    ready = tq.calibrate(tq.prepare_pt2e(program, xnnpack()), [sequences(3, 5)])
    expected = outcome(program.module(), sequences(*size), {})
    assert outcome(ready, sequences(*size), {}) == expected
    assert outcome(tq.convert_pt2e(ready), sequences(*size), {}) == expected


@pytest.mark.parametrize("observer", ["minmax", "histogram"])
def test_an_empty_batch_adds_nothing_to_calibration(observer: str) -> None:
    """It goes through, and what the other batches showed is all that counts."""
    batches = [sequences(0, 5), sequences(1, 5), sequences(3, 0), sequences(8, 3), sequences(0, 0)]
    one, other = (tq.prepare_pt2e(of_any_size(), xnnpack(), activation_observer=observer) for _ in range(2))
    tq.calibrate(one, batches)
    tq.calibrate(other, [batches[1], batches[3]])
    assert tq.convert_pt2e(one).code == tq.convert_pt2e(other).code


def test_empty_batches_alone_are_no_calibration() -> None:
    """Convert says which tensors saw no value."""
    ready = tq.calibrate(tq.prepare_pt2e(of_any_size(), xnnpack()), [sequences(0, 5)])
    with pytest.raises(tq.CalibrationError, match="saw no data") as caught:
        tq.convert_pt2e(ready)
    assert "→ linear" in str(caught.value.node)


# ----------------------------------------------------------------------------------------------------------
# Ranks that vary
# ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=6))
@pytest.mark.parametrize("kind", [MinMaxObserver, HistogramObserver])
def test_an_observer_of_a_whole_tensor_takes_every_rank(
    kind: type[Observer], shapes: list[list[int]]
) -> None:
    """From call to call a tensor may have any rank, from a single number on: only its values count."""
    tensors = [normal(math.prod(shape), seed=seed).reshape(shape) for seed, shape in enumerate(shapes)]
    one, other = kind(INT8), kind(INT8)
    for tensor in tensors:
        one.update(tensor)
    other.update(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    assert one.count == other.count
    if one.has_data:
        assert all(map(torch.equal, one.qparams(), other.qparams()))


def test_one_observer_stands_at_places_of_different_rank() -> None:
    """Tensors that are reshaped, squeezed and joined have one set of parameters, found from all of them."""

    class Reshaping(Linear):
        def forward(self, x: Any) -> Any:
            flat = self.fc(x).flatten()
            return torch.cat([flat, x.reshape(-1)]).reshape(2, 2, 1, 4).squeeze(2).unsqueeze(0)

    x = t(0)
    ready = tq.calibrate(
        tq.prepare_pt2e(export(Reshaping(), x), xnnpack(), activation_observer="minmax"), [x]
    )
    ranks: dict[str, set[int]] = {}
    for node in ready.graph.nodes:
        if node.op == "call_module" and node.users:
            ranks.setdefault(str(node.target), set()).add(node.meta["val"].dim())
    assert {1, 2, 3, 4} <= max(ranks.values(), key=len)
    model = Reshaping().eval()
    assert sqnr(model(x), quantize(model, xnnpack(), x)(x)) > 30


# ----------------------------------------------------------------------------------------------------------
# Forms of calibration data
# ----------------------------------------------------------------------------------------------------------


def rows() -> list[dict[str, torch.Tensor]]:
    """Samples by name, without a batch dimension."""
    return [{name: normal(4, seed=seed + shift) for shift, name in enumerate(NAMES)} for seed in range(4)]


NAMES = ("x", "scale", "shift")


def positional() -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches of two as tuples, by a generator."""
    samples = rows()
    for start in (0, 2):
        yield tuple(torch.stack([sample[name] for sample in samples[start : start + 2]]) for name in NAMES)


DATA: dict[str, Callable[[], Any]] = {
    "generator of tuples": positional,
    "list of dicts": lambda: [dict(zip(NAMES, batch, strict=True)) for batch in positional()],
    "loader of dicts": lambda: DataLoader(rows(), batch_size=2),  # type: ignore[arg-type]
    "loader of tuples": lambda: DataLoader(
        [tuple(sample.values()) for sample in rows()],  # type: ignore[arg-type]
        batch_size=2,
    ),
}


@pytest.mark.parametrize("form", DATA)
@pytest.mark.parametrize("by_name", [False, True], ids=["exported by position", "exported by name"])
def test_data_may_be_positional_or_named_however_the_model_was_exported(form: str, by_name: bool) -> None:
    """A batch is bound to the signature of the model, and the observers see the same."""
    args, kwargs = (
        ((), dict(zip(NAMES, (t(0), t(1), t(2)), strict=True))) if by_name else ((t(0), t(1), t(2)), {})
    )
    program = torch.export.export(Three().eval(), args, kwargs)
    ready = tq.prepare_pt2e(program, xnnpack(), activation_observer="minmax")
    tq.calibrate(ready, DATA[form]())
    reference = tq.prepare_pt2e(program, xnnpack(), activation_observer="minmax")
    for batch in positional():
        named = dict(zip(NAMES, batch, strict=True))
        reference(**named) if by_name else reference(*batch)
    assert tq.convert_pt2e(ready).code == tq.convert_pt2e(reference).code


def test_an_input_that_is_a_container_is_one_of_the_inputs() -> None:
    """A model that takes a dict by position is calibrated with tuples that hold a dict."""
    case = CASES["nested"]
    ready = tq.prepare_pt2e(exported("nested"), xnnpack(), activation_observer="minmax")
    assert tq.convert_pt2e(tq.calibrate(ready, [case.args])).code == converted("nested").code
