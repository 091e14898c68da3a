"""save and load: the same bits come back, and what cannot be saved is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.fx import GraphModule
from torch.utils._pytree import GetAttrKey, _register_namedtuple, register_pytree_node

import torchquilt as tq
from artifacts import CASES, Linear, X, in_fresh_python, made, xnnpack
from strategies import (
    Fn,
    Nothing,
    export,
    normal,
    prepare,
    quantize,
)
from torchquilt.artifact import read_lock

# ----------------------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_model_gives_the_same_bits(case: str, tmp_path: Path) -> None:
    """A loaded model computes bit for bit what was saved, by load and by torch.export.load."""
    quantized, inputs = made(case)
    lock = tq.save(quantized, tmp_path / "model.pt2", inputs)
    loaded = tq.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(inputs), quantized(inputs))
    assert loaded.lock == lock == read_lock(tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(inputs), quantized(inputs))


@pytest.mark.long
def test_a_fresh_process_needs_no_plugin(tmp_path: Path) -> None:
    """A composed model is loaded where no plugin may be used, and gives the same bits."""
    quantized, inputs = made("embedding and linear")
    tq.save(quantized, tmp_path / "model.pt2", inputs)
    torch.save((inputs, quantized(inputs)), tmp_path / "case.pt")
    code = """
import sys, torch, torchquilt as tq
inputs, expected = torch.load(sys.argv[1] + "/case.pt")
artifact = tq.load(sys.argv[1] + "/model.pt2")
assert torch.equal(artifact.module()(inputs), expected)
assert [plugin.backend for plugin in artifact.lock.plugins] == ["executorch_embedding", "xnnpack"]
assert not [name for name in sys.modules if name.startswith(("torchquilt_", "torchao", "executorch"))]
"""
    done = in_fresh_python(code, tmp_path, TORCHQUILT_PLUGINS="")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("given", [X, (X,), [X], {"x": X}], ids=["one", "tuple", "list", "by name"])
def test_example_inputs_are_a_batch_as_calibrate_takes_it(
    linear: GraphModule, given: Any, tmp_path: Path
) -> None:
    """In whichever form they are given, the saved model is called as the exported one."""
    tq.save(linear, tmp_path / "model.pt2", given)
    assert torch.equal(tq.load(tmp_path / "model.pt2").module()(X), linear(X))


def test_a_model_without_inputs_is_saved_with_an_empty_tuple(tmp_path: Path) -> None:
    """() are the example inputs of a model that takes none."""
    model = Fn(lambda self: self.fc(self.x), fc=nn.Linear(16, 8), x=X)
    quantized = quantize(model, Nothing())
    tq.save(quantized, tmp_path / "model.pt2", ())
    assert torch.equal(tq.load(tmp_path / "model.pt2").module()(), quantized())


def test_nested_inputs_and_outputs_come_back(tmp_path: Path) -> None:
    """Lists and dicts of tensors, numbers and None keep their structure."""
    model = Fn(
        lambda self, batch: {"y": self.fc(batch["x"][0]) * batch["n"], "none": None}, fc=nn.Linear(16, 8)
    )
    batch = {"x": [X], "n": 3}
    quantized = quantize(model, xnnpack(), batch)
    tq.save(quantized, tmp_path / "model.pt2", (batch,))
    got = tq.load(tmp_path / "model.pt2").module()(batch)
    assert list(got) == ["y", "none"]
    assert torch.equal(got["y"], quantized(batch)["y"])


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # from run_decompositions
def test_buffers_keep_mutating(tmp_path: Path) -> None:
    """A counter counts on after load; one that is not persistent and a constant are there as well."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)
            self.register_buffer("calls", torch.zeros(1))
            self.register_buffer("scale", torch.full((16,), 2.0), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return self.fc(x) * self.scale + torch.tensor([0.5]) + self.calls

    quantized = quantize(Counting(), Nothing(), X)
    lock = tq.save(quantized, tmp_path / "model.pt2", X)
    module = tq.load(tmp_path / "model.pt2").module()
    for _ in range(3):
        assert torch.equal(module(X), quantized(X))
    assert module.calls == 3
    functional = tq.load(tmp_path / "model.pt2").program.run_decompositions({})
    assert list(functional.graph_signature.buffers_to_mutate.values()) == ["calls"]
    assert {("calls", "buffer"), ("scale", "buffer")} <= {(row.name, row.role) for row in lock.tensors}
    lock = tq.save(export(Counting(), X), tmp_path / "float.pt2")
    assert [row.role for row in lock.tensors].count("constant") == 1


def test_saving_changes_nothing_of_the_model(linear: GraphModule, tmp_path: Path) -> None:
    """The graph, the tensors and the notes of the model are the same objects with the same content."""
    before = (
        linear.code,
        {name: id(t) for name, t in linear.state_dict(keep_vars=True).items()},
        dict(linear.meta),
    )
    tq.save(linear, tmp_path / "model.pt2", X)
    after = (
        linear.code,
        {name: id(t) for name, t in linear.state_dict(keep_vars=True).items()},
        dict(linear.meta),
    )
    assert after == before


CONTROL_FLOW: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "cond": (
        lambda self, x: torch.cond(x.sum() > 0, lambda x: self.fc(x), lambda x: self.fc(x) * 2, (x,)),
        (X,),
    ),
    "no_grad": (lambda self, x: self.fc(torch.no_grad()(torch.relu)(x)), (X,)),
    "autocast": (lambda self, x: torch.autocast("cpu", torch.bfloat16)(self.fc)(x), (X,)),
    "sizes that depend on data": (lambda self, x: self.fc(x)[x[:, 0] > 0], (X,)),
    "einsum": (lambda self, x: torch.einsum("ab,cb->ac", self.fc(x), self.fc(x)), (X,)),
    "gelu": (lambda self, x: nn.functional.gelu(self.fc(x), approximate="tanh"), (X,)),
    "infinity": (lambda self, x: self.fc(x).masked_fill(self.fc(x) > 0, float("-inf")), (X,)),
}


@pytest.mark.parametrize("case", CONTROL_FLOW)
def test_what_real_programs_hold_passes(case: str, tmp_path: Path) -> None:
    """Subgraphs of control flow, texts, infinities and assertions about sizes are not refused."""
    function, inputs = CONTROL_FLOW[case]
    module = quantize(Fn(function, fc=nn.Linear(16, 8)), Nothing(), *inputs)
    tq.save(module, tmp_path / "model.pt2", inputs)
    assert torch.equal(tq.load(tmp_path / "model.pt2").module()(*inputs), module(*inputs))


# ----------------------------------------------------------------------------------------------------------
# Sizes that are dynamic
# ----------------------------------------------------------------------------------------------------------


def of_any_batch() -> GraphModule:
    """A linear for batches of up to 32."""
    exported = export(Linear(), X, dynamic_shapes={"x": {0: Dim("batch", max=32)}})
    return tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, xnnpack()), [X]))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 32), (1, 32), (3, None)], ids=["from 0", "from 1", "without end"]
)
def test_the_range_of_a_dynamic_size_is_kept(low: int, high: int | None, tmp_path: Path) -> None:
    """Both ends are those of the exported model, also those that torch by itself takes for 2 or more."""
    batch = Dim("batch", min=low, max=high)
    exported = export(Linear(), X, dynamic_shapes={"x": {0: batch}})
    quantized = tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, xnnpack()), [X]))
    tq.save(quantized, tmp_path / "model.pt2", X)
    found = tq.load(tmp_path / "model.pt2").program.range_constraints
    assert [*found.values()] == [*exported.range_constraints.values()]


def test_what_was_dynamic_stays_so(tmp_path: Path) -> None:
    """Without a word about shapes, a model that was exported for 1 to 32 rows is saved for 1 to 32 rows."""
    quantized = of_any_batch()
    tq.save(quantized, tmp_path / "model.pt2", X)
    module = tq.load(tmp_path / "model.pt2").module()
    for size in (1, 7, 32):
        x = normal(size, 16, seed=size)
        assert torch.equal(module(x), quantized(x))
    with pytest.raises(AssertionError, match="32"):
        module(normal(33, 16))


def test_sizes_that_depend_on_each_other_stay_so(tmp_path: Path) -> None:
    """Twice as many rows here as there: arithmetic of sizes is saved and loaded."""

    class Halves(Linear):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.fc(x)[: y.shape[0]] * (x.shape[0] * 3 // 2) + self.fc(y)

    half = Dim("half", min=2, max=32)
    inputs = (normal(6, 16), normal(3, 16))
    exported = export(Halves(), *inputs, dynamic_shapes={"x": {0: 2 * half}, "y": {0: half}})
    quantized = tq.convert_pt2e(tq.calibrate(tq.prepare_pt2e(exported, xnnpack()), [inputs]))
    tq.save(quantized, tmp_path / "model.pt2", inputs)
    other = (normal(10, 16), normal(5, 16))
    loaded = tq.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(*other), quantized(*other))
    ranges = {str(size): bounds for size, bounds in exported.range_constraints.items()}
    assert {str(size): bounds for size, bounds in loaded.program.range_constraints.items()} == ranges


def test_dynamic_shapes_that_are_given_are_taken(tmp_path: Path) -> None:
    """A dimension that was dynamic can be fixed on purpose."""
    tq.save(of_any_batch(), tmp_path / "model.pt2", X, dynamic_shapes={"x": {0: None}})
    module = tq.load(tmp_path / "model.pt2").module()
    module(X)
    with pytest.raises(AssertionError, match="4"):
        module(normal(7, 16))


def test_an_example_that_would_fix_a_dynamic_size_is_an_error(tmp_path: Path) -> None:
    """A batch of one makes torch take the batch for fixed; the error says which dimension of which input."""
    with pytest.raises(tq.ArtifactError, match="fix a size of x") as caught:
        tq.save(of_any_batch(), tmp_path / "model.pt2", normal(1, 16))
    assert "dimension 0" in str(caught.value.expected)
    assert "(1, 16)" in str(caught.value.got)
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------------
# What can be saved
# ----------------------------------------------------------------------------------------------------------


def test_an_exported_program_is_taken_as_it_is(linear: GraphModule, tmp_path: Path) -> None:
    """It needs no example inputs, and still says who made it."""
    program = torch.export.export(linear, (X,))
    lock = tq.save(program, tmp_path / "model.pt2")
    assert torch.equal(tq.load(tmp_path / "model.pt2").module()(X), linear(X))
    assert "XNNPACKQuantizer" in str(lock.quantizer)


def test_example_inputs_beside_an_exported_program_are_an_error(linear: GraphModule, tmp_path: Path) -> None:
    """They would have no effect, and nothing that is given is ignored."""
    program = torch.export.export(linear, (X,))
    with pytest.raises(tq.ArtifactError, match="no effect") as caught:
        tq.save(program, tmp_path / "model.pt2", X)
    assert caught.value.got == "example_inputs"


def test_missing_example_inputs_are_an_error_that_names_the_inputs(
    linear: GraphModule, tmp_path: Path
) -> None:
    """The error says what is missing, for which inputs, and how to pass it."""
    with pytest.raises(tq.ArtifactError, match="needs example inputs") as caught:
        tq.save(linear, tmp_path / "model.pt2")
    assert caught.value.expected == "example_inputs for x"
    assert "calibrate" in str(caught.value.remedy)


@pytest.mark.parametrize("given", [normal(4, 7), (X, X), {"y": X}], ids=["shape", "number", "name"])
def test_example_inputs_that_do_not_fit_are_an_error(linear: GraphModule, given: Any, tmp_path: Path) -> None:
    """The error shows the signature and what torch says, and nothing is written."""
    with pytest.raises(tq.ArtifactError, match="cannot be exported") as caught:
        tq.save(linear, tmp_path / "model.pt2", given)
    assert "(x)" in str(caught.value.expected)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["prepared", "float", "nothing"])
def test_only_a_converted_model_can_be_saved(kind: str, tmp_path: Path) -> None:
    """A prepared model, a module that was not exported and None are refused with what has to come before."""
    model = {"prepared": prepare(Linear(), xnnpack(), X), "float": Linear(), "nothing": None}[kind]
    with pytest.raises(tq.ModelError, match="converted") as caught:
        tq.save(model, tmp_path / "model.pt2", X)  # type: ignore[arg-type]
    assert "convert_pt2e" in str(caught.value.remedy)


class Marked(torch.Tensor):
    """A tensor of a class of its own, which torch would pickle."""


def test_a_tensor_that_would_be_pickled_is_an_error_with_its_name(
    linear: GraphModule, tmp_path: Path
) -> None:
    """A subclass of Tensor is refused when saving, because it would be when loading."""
    program = torch.export.export(linear, (X,))
    program.state_dict["fc.bias"] = nn.Parameter(program.state_dict["fc.bias"].detach().as_subclass(Marked))
    with pytest.raises(tq.ArtifactError, match=r"'fc\.bias' is not a plain tensor") as caught:
        tq.save(program, tmp_path / "model.pt2")
    assert "Marked" in str(caught.value.got)
    assert list(tmp_path.iterdir()) == []


@attrs.define
class Pair:
    """An input that is an object."""

    left: torch.Tensor
    right: torch.Tensor


register_pytree_node(
    Pair,
    lambda pair: ([pair.left, pair.right], None),
    lambda parts, _: Pair(*parts),
    serialized_type_name="tests.Pair",
    flatten_with_keys_fn=lambda pair: (
        [(GetAttrKey("left"), pair.left), (GetAttrKey("right"), pair.right)],
        None,
    ),
)


class Both(NamedTuple):
    """An input and an output with names."""

    left: torch.Tensor
    right: torch.Tensor


_register_namedtuple(Both, serialized_type_name="tests.Both")


@pytest.mark.filterwarnings("ignore:The example inputs of the program are left out")
def test_named_tuples_keep_their_type(tmp_path: Path) -> None:
    """Inputs and outputs that go by name do so after load."""
    model = Fn(lambda self, both: Both(self.fc(both.left), both.right), fc=nn.Linear(16, 8))
    both = Both(X, X)
    quantized = quantize(model, xnnpack(), both)
    tq.save(quantized, tmp_path / "model.pt2", (both,))
    got = tq.load(tmp_path / "model.pt2").module()(both)
    assert isinstance(got, Both)
    assert torch.equal(got.left, quantized(both).left)


def test_a_model_that_returns_a_text_is_an_error(tmp_path: Path) -> None:
    """Torch would save it and fail to load it; numbers and None are saved."""
    model = Fn(lambda self, x, name: (self.fc(x), name, 3, 0.5, True, None), fc=nn.Linear(16, 8))
    quantized = quantize(model, xnnpack(), X, 7)
    tq.save(quantized, tmp_path / "model.pt2", (X, 7))
    assert tq.load(tmp_path / "model.pt2").module()(X, 7)[1:] == (7, 3, 0.5, True, None)
    with pytest.raises(tq.ArtifactError, match="returns a text") as caught:
        tq.save(quantize(model, xnnpack(), X, "big"), tmp_path / "other.pt2", (X, "big"))
    assert caught.value.got == "'big'"
    assert not (tmp_path / "other.pt2").exists()


def test_example_inputs_that_are_objects_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """To read an object back is to run code; the program itself does not need it."""
    pair = Pair(X, X)
    quantized = quantize(
        Fn(lambda self, pair: self.fc(pair.left + pair.right), fc=nn.Linear(16, 8)), xnnpack(), pair
    )
    with pytest.warns(UserWarning, match="example inputs of the program are left out"):
        tq.save(quantized, tmp_path / "model.pt2", (pair,))
    loaded = tq.load(tmp_path / "model.pt2")
    assert loaded.program.example_inputs is None
    assert torch.equal(loaded.module()(pair), quantized(pair))


def test_what_torch_cannot_save_is_our_error_and_leaves_the_old_file(saved: Path) -> None:
    """Torch has no name for the type that topk returns; the process lives, and the old file is whole."""
    before = saved.read_bytes()
    quantized = quantize(Fn(lambda self, x: torch.topk(self.fc(x), 2), fc=nn.Linear(16, 8)), xnnpack(), X)
    with pytest.raises(tq.ArtifactError, match="torch cannot save") as caught:
        tq.save(quantized, saved, X)
    assert "topk" in str(caught.value.got)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
