"""save and load: the same bits come back, the lock says what they are, and nothing in a file is executed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import typing
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.fx import GraphModule
from torch.utils._pytree import GetAttrKey, register_pytree_node

import torchquilt as tq
from strategies import (
    INT8,
    WEIGHT,
    ByFunction,
    Fn,
    Nothing,
    export,
    normal,
    one_call,
    prepare,
    quantize,
    weights_of,
)
from torchquilt.artifact import Artifact, Lock, diff, read_lock, screening
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

LOCK = "extra/torchquilt.json"
PROGRAM = "models/model.json"


def xnnpack(**asked: bool) -> XNNPACKQuantizer:
    """XNNPACK everywhere, per channel."""
    return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, **asked))


def composed() -> tq.ComposableQuantizer:
    """Both backends."""
    return tq.ComposableQuantizer([ExecuTorchEmbeddingQuantizer(), xnnpack()])


class Linear(nn.Module):
    """One layer, with an input that has a name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return self.fc(x)


class Tokens(nn.Module):
    """An embedding and a linear: one for each backend."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(64, 16)
        self.fc = nn.Linear(16, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores at each position."""
        return self.fc(self.tokens(ids))


X = normal(4, 16)
IDS = torch.arange(6).reshape(2, 3)
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], object], torch.Tensor]] = {
    "linear": (Linear, xnnpack, X),
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), xnnpack, normal(2, 3, 8, 8)),
    "dynamic": (Linear, lambda: xnnpack(is_dynamic=True), X),
    "embedding and linear": (Tokens, composed, IDS),
}


def made(case: str) -> tuple[GraphModule, torch.Tensor]:
    """A quantized model and its input."""
    model, quantizer, inputs = CASES[case]
    return quantize(model(), quantizer(), inputs), inputs


@pytest.fixture(scope="module")
def linear() -> GraphModule:
    """A quantized linear; tests do not change it."""
    return made("linear")[0]


@pytest.fixture
def saved(linear: GraphModule, tmp_path: Path) -> Path:
    """It in a file."""
    tq.save(linear, tmp_path / "model.pt2", X)
    return tmp_path / "model.pt2"


def in_fresh_python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )


def entries_of(path: Path) -> dict[str, bytes]:
    """Name below the root folder → content."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, entries: dict[str, bytes]) -> Path:
    """An archive as torch.export.save writes it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


def sealed(lock: dict[str, Any]) -> bytes:
    """A lock with the digest that its content has: what anyone can make."""
    content = {name: value for name, value in lock.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}).encode()


def forge(path: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    """A file with other entries and a lock that fits them, which is the best that a forger can do."""
    entries = entries_of(path)
    change(entries)
    lock = json.loads(entries[LOCK])
    lock["entries"] = [
        {"name": name, "nbytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in entries.items()
        if name != LOCK
    ]
    entries[LOCK] = sealed(lock)
    return write(path.with_name("forged.pt2"), entries)


def in_program(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, bytes]], None]:
    """A change of the JSON of the program."""

    def apply(entries: dict[str, bytes]) -> None:
        program = json.loads(entries[PROGRAM])
        entries[PROGRAM] = json.dumps(change(program) or program).encode()

    return apply


def change_lock(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The same file with another lock, which has the digest of its content."""
    entries = entries_of(path)
    lock = json.loads(entries[LOCK])
    change(lock)
    entries[LOCK] = sealed(lock)
    return write(path, entries)


# ----------------------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_model_gives_the_same_bits(case: str, tmp_path: Path) -> None:
    """What comes back computes bit for bit what was saved, by load and by torch.export.load."""
    quantized, inputs = made(case)
    lock = tq.save(quantized, tmp_path / "model.pt2", inputs)
    loaded = tq.load(tmp_path / "model.pt2")
    assert torch.equal(loaded.module()(inputs), quantized(inputs))
    assert loaded.lock == lock == read_lock(tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(inputs), quantized(inputs))


def test_a_fresh_process_needs_no_plugin(tmp_path: Path) -> None:
    """Where no plugin may be used, a composed model is loaded all the same, and gives the same bits."""
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
    """The only input by itself, a tuple or list of positional ones, or a mapping of keyword ones."""
    tq.save(linear, tmp_path / "model.pt2", given)
    module = tq.load(tmp_path / "model.pt2").module()
    got = module(**given) if isinstance(given, dict) else module(X)
    assert torch.equal(got, linear(X))


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
    """Bodies of control flow, texts, infinities and assertions about sizes are not refused."""
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
    assert torch.equal(tq.load(tmp_path / "model.pt2").module()(*other), quantized(*other))


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


# ----------------------------------------------------------------------------------------------------------
# What the lock says
# ----------------------------------------------------------------------------------------------------------


def test_the_lock_has_the_parameters_of_each_quantized_tensor(linear: GraphModule, tmp_path: Path) -> None:
    """Numbers where there is one, the name of the tensor that holds them where there are many."""
    lock = tq.save(linear, tmp_path / "model.pt2", X)
    rows = {row.name: row for row in lock.quantized}
    scale, zero_point = one_call(linear, "linear").all_input_nodes[0].args[1:3]
    assert attrs.asdict(rows["x"]) == {
        "name": "x",
        "kind": "static",
        "module": "fc",
        "dtype": "int8",
        "quant_min": -128,
        "quant_max": 127,
        "granularity": "per_tensor",
        "axis": None,
        "group_size": None,
        "scale": scale,
        "zero_point": zero_point,
    }
    weight = rows["fc.weight_int8"]
    assert (weight.kind, weight.granularity, weight.axis) == ("constant", "per_axis", 0)
    assert (weight.quant_min, weight.quant_max) == (-127, 127)
    assert weight.scale in linear.state_dict()
    assert weight.zero_point in linear.state_dict()
    assert list(rows) == ["x", "fc.weight_int8", "linear"]


def test_parameters_that_are_computed_are_not_made_up(tmp_path: Path) -> None:
    """A dynamic input has a range of integers, and neither a scale nor a zero point."""
    quantized, inputs = made("dynamic")
    lock = tq.save(quantized, tmp_path / "model.pt2", inputs)
    (row,) = (row for row in lock.quantized if row.kind == "dynamic")
    assert (row.name, row.scale, row.zero_point, row.dtype) == ("x", None, None, "int8")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            tq.QuantizationSpec("int8", -8, 7, "per_group", group_size=4, symmetric=True),
            ("per_group", None, 4),
        ),
        (attrs.evolve(WEIGHT, ch_axis=1), ("per_axis", 1, None)),
        (attrs.evolve(WEIGHT, granularity="per_tensor", ch_axis=None), ("per_tensor", None, None)),
    ],
    ids=["per_group", "per_axis", "per_tensor"],
)
def test_each_granularity_of_a_weight_is_told(
    spec: tq.QuantizationSpec, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    """With the axis or the size of the groups that goes with it."""
    quantized = quantize(Linear(), weights_of("linear", spec), X)
    (row,) = tq.save(quantized, tmp_path / "model.pt2", X).quantized
    assert (row.granularity, row.axis, row.group_size) == expected
    assert row.kind == "constant"


def test_a_token_wise_input_is_told(tmp_path: Path) -> None:
    """One scale for each row, found anew for each input."""
    spec = tq.QuantizationSpec("int8", -128, 127, "per_token", is_dynamic=True)
    quantizer = ByFunction(
        lambda node: tq.QuantizationAnnotation({node.args[0]: spec}) if "linear" in str(node.target) else None
    )
    (row,) = tq.save(quantize(Linear(), quantizer, X), tmp_path / "model.pt2", X).quantized
    assert (row.granularity, row.kind, row.scale) == ("per_token", "dynamic", None)


def test_a_tensor_that_is_quantized_in_two_ways_has_two_rows(tmp_path: Path) -> None:
    """Both have its name, the second one with a number."""
    fixed = tq.FixedQParamsQuantizationSpec("uint8", 1 / 64, 128)

    def decide(node: torch.fx.Node) -> tq.QuantizationAnnotation | None:
        spec = {"relu": INT8, "neg": fixed}.get(node.name)
        return tq.QuantizationAnnotation({node.args[0]: spec}) if spec else None

    model = Fn(lambda self, x: torch.relu(x) + torch.neg(x))
    lock = tq.save(quantize(model, ByFunction(decide), X), tmp_path / "model.pt2", X)
    assert [(row.name, row.dtype) for row in lock.quantized] == [("args_0", "int8"), ("args_0#2", "uint8")]


def test_the_digest_of_a_tensor_can_be_checked_by_hand(saved: Path) -> None:
    """It is that of the bytes that numpy has for it; names, dtypes and shapes are those of the state dict."""
    state = torch.export.load(saved).state_dict
    lock = read_lock(saved)
    assert [tensor.name for tensor in lock.tensors] == list(state)
    for tensor in lock.tensors:
        value = state[tensor.name].detach()
        assert tensor.sha256 == hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        assert (tensor.dtype, tensor.shape) == (str(value.dtype).removeprefix("torch."), tuple(value.shape))


def test_the_digest_is_of_the_elements_and_not_of_the_memory(tmp_path: Path) -> None:
    """A transposed view, a slice and an empty tensor have the digest of what they show."""
    whole = normal(6, 4)
    model = Fn(
        lambda self, x: x + self.t.sum() + self.cut.sum() + self.empty.sum(), t=whole.t(), cut=whole[1:3, 1:]
    )
    model.register_buffer("empty", torch.zeros(0, 3))
    with pytest.warns(UserWarning, match="No complete tensor"):  # torch's own remark on memory that is shared
        lock = tq.save(quantize(model, Nothing(), X), tmp_path / "model.pt2", X)
    found = {tensor.name: tensor.sha256 for tensor in lock.tensors}
    for name, value in model.state_dict().items():
        assert found[name] == hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest(), name
    tq.load(tmp_path / "model.pt2")


def test_sizes_are_told_by_dtype_and_shared_memory_counts_once(tmp_path: Path) -> None:
    """A tensor and a part of it have two names and one place in the file."""
    whole = normal(6, 16)
    model = Fn(lambda self, x: x + self.whole.sum(0) + self.part.sum(0), whole=whole, part=whole[:2])
    lock = tq.save(quantize(model, Nothing(), X), tmp_path / "model.pt2", X)
    assert [tensor.name for tensor in lock.tensors] == ["whole", "part"]
    assert len({tensor.entry for tensor in lock.tensors}) == 1
    assert lock.bytes_by_dtype == {"float32": 6 * 16 * 4}


def test_sizes_of_a_quantized_model_are_those_of_its_state(linear: GraphModule, saved: Path) -> None:
    """The bytes of each dtype add up to those of the state dict, the biggest first."""
    expected: dict[str, int] = {}
    for tensor in linear.state_dict().values():
        name = str(tensor.dtype).removeprefix("torch.")
        expected[name] = expected.get(name, 0) + tensor.nbytes
    found = read_lock(saved).bytes_by_dtype
    assert found == expected
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_the_lock_says_who_made_it(tmp_path: Path) -> None:
    """Versions, plugins, the quantizer with its intent, its capabilities, and every decision."""
    quantized, inputs = made("embedding and linear")
    lock = tq.save(quantized, tmp_path / "model.pt2", inputs)
    assert (lock.torchquilt, lock.torch) == (tq.__version__, torch.__version__)
    assert [(plugin.backend, plugin.distribution) for plugin in lock.plugins] == [
        ("executorch_embedding", "torchquilt-executorch-embedding"),
        ("xnnpack", "torchquilt-xnnpack"),
    ]
    assert all(plugin.version for plugin in lock.plugins)
    assert lock.quantizer == repr(composed())
    assert lock.capabilities == composed().quantization_capabilities().content_hash
    assert lock.ledger == tq.ledger_of(quantized)
    assert {row.operator: row.count for row in lock.operators}["aten.linear.default"] == 1


def test_a_model_that_says_nothing_of_itself_has_no_origin(linear: GraphModule, tmp_path: Path) -> None:
    """Quantizer, capabilities and ledger are None, and the rest of the lock is there."""
    program = torch.export.export(linear, (X,))
    program.graph_module.meta.clear()
    lock = tq.save(program, tmp_path / "model.pt2")
    assert (lock.quantizer, lock.capabilities, lock.ledger, lock.plugins) == (None, None, None, ())
    assert lock.quantized


def test_a_backend_that_is_no_plugin_has_no_version(tmp_path: Path) -> None:
    """A table of the user's own is named, with nothing made up about where it comes from."""
    quantized, _ = made("linear")
    quantized.meta["torchquilt"] = {**quantized.meta["torchquilt"], "backends": ["my_own"]}
    (plugin,) = tq.save(quantized, tmp_path / "model.pt2", X).plugins
    assert (plugin.backend, plugin.distribution, plugin.version) == ("my_own", None, None)


@pytest.mark.parametrize("form", ["program", "module"])
def test_a_loaded_model_can_be_saved_again(saved: Path, form: str) -> None:
    """Nothing is lost on the way: the second lock says what the first one says."""
    artifact = tq.load(saved)
    again = saved.with_name("again.pt2")
    if form == "program":
        tq.save(artifact.program, again)
    else:
        tq.save(artifact.module(), again, X)
    assert not diff(artifact.lock, read_lock(again))
    assert read_lock(again).ledger is not None


def test_a_lock_survives_json(saved: Path) -> None:
    """What is written and read again is equal, with the same digest."""
    lock = read_lock(saved)
    again = Lock.from_json(lock.to_json())
    assert again == lock
    assert hash(again) == hash(lock)
    assert json.loads(lock.to_json())["sha256"] == lock.sha256


def test_locks_and_artifacts_cannot_be_changed(saved: Path) -> None:
    """Both are values."""
    artifact = tq.load(saved)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        artifact.lock.torch = "9"  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        artifact.program = None  # type: ignore[misc]
    assert isinstance(artifact, Artifact)


def test_a_lock_is_read_without_torch(saved: Path) -> None:
    """Sizes, parameters, the ledger and a comparison are had in a process where torch cannot be imported."""
    code = """
import sys
sys.modules["torch"] = None
from torchquilt.artifact import Lock, diff, read_lock
lock = read_lock(sys.argv[1])
assert lock.bytes_by_dtype["int8"] == 128
assert [row.name for row in lock.quantized] == ["x", "fc.weight_int8", "linear"]
assert lock.ledger["linear"].quantizer == "XNNPACKQuantizer"
assert not diff(lock, Lock.from_json(lock.to_json()))
"""
    done = in_fresh_python(code, saved)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_does_not_import_torch() -> None:
    """Every module of it, that is."""
    code = """
import importlib, pkgutil, sys, torchquilt.artifact as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"torchquilt.artifact.{module.name}")
sys.exit("torch" in sys.modules)
"""
    done = in_fresh_python(code)
    assert done.returncode == 0, done.stderr


def _drop_a_field(lock: dict[str, Any]) -> None:
    del lock["tensors"]


def _add_a_field(lock: dict[str, Any]) -> None:
    lock["colour"] = "green"


def _break_a_type(lock: dict[str, Any]) -> None:
    lock["tensors"][0]["shape"] = "8"


def _break_a_row(lock: dict[str, Any]) -> None:
    lock["tensors"][0] = 7


@pytest.mark.parametrize("change", [_drop_a_field, _add_a_field, _break_a_type, _break_a_row])
def test_a_lock_with_other_fields_is_an_error(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Also where its digest is right: what is missing, unknown or of another type is named."""
    change_lock(saved, change)
    with pytest.raises(tq.ArtifactError, match="fields that a lock has") as caught:
        read_lock(saved)
    assert "tensors" in str(caught.value.expected)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"schema": 1}', "{" * 100_000], ids=range(6))
def test_text_that_is_no_lock_is_an_error(text: str) -> None:
    """Whatever is there instead of a lock."""
    with pytest.raises(tq.ArtifactError, match="not JSON of a lock"):
        Lock.from_json(text)


def test_another_schema_version_is_an_error_that_says_so(saved: Path) -> None:
    """Before anything else is made of the lock."""
    change_lock(saved, lambda lock: lock.update(schema=99, extra={}))
    with pytest.raises(tq.ArtifactError, match="another schema") as caught:
        tq.load(saved)
    assert (caught.value.expected, caught.value.got) == (1, 99)
    assert caught.value.path == str(saved)


# ----------------------------------------------------------------------------------------------------------
# How two locks differ
# ----------------------------------------------------------------------------------------------------------


def test_the_same_model_made_twice_has_no_difference(linear: GraphModule, tmp_path: Path) -> None:
    """One seed, one intent, one set of data: nothing differs that matters."""
    found = diff(tq.save(linear, tmp_path / "a.pt2", X), tq.save(made("linear")[0], tmp_path / "b.pt2", X))
    assert not found
    assert str(found) == "no difference"


def test_two_models_differ_in_what_is_in_them_and_what_made_them(tmp_path: Path) -> None:
    """Tensors and parameters that were added, removed and changed, and decisions, each in words."""
    static = tq.save(made("linear")[0], tmp_path / "a.pt2", X)
    dynamic = tq.save(made("dynamic")[0], tmp_path / "b.pt2", X)
    other = Linear()
    nn.init.ones_(other.fc.weight)
    changed = tq.save(quantize(other, xnnpack(), X), tmp_path / "c.pt2", X)

    lines = str(diff(static, dynamic)).splitlines()
    assert "quantized tensor x, kind: static → dynamic" in lines
    assert any(line.startswith("quantized tensor linear removed: kind static") for line in lines)
    assert any(
        line.startswith("operator quantized_decomposed.choose_qparams") and " added: " in line
        for line in lines
    )
    assert any(line.startswith("quantizer: XNNPACKQuantizer(everywhere: static") for line in lines)
    assert any(line.startswith("decision linear: ") for line in lines)

    subjects = {(change.subject, change.name, change.field) for change in diff(static, changed)}
    assert ("tensor", "fc.weight_int8", "sha256") in subjects
    assert ("quantized tensor", "linear", "scale") in subjects
    assert not any(subject in ("quantizer", "decision", "operator", "version") for subject, _, _ in subjects)


def test_versions_and_plugins_are_compared(saved: Path) -> None:
    """A file that another torch or another plugin wrote says so first."""
    lock = read_lock(saved)
    (plugin,) = lock.plugins
    newer = attrs.evolve(lock, torch="9.9", plugins=(attrs.evolve(plugin, version="8.8"),))
    found = diff(lock, newer)
    assert [str(change) for change in found] == [
        f"version torch: {torch.__version__} → 9.9",
        f"plugin xnnpack, version: {plugin.version} → 8.8",
    ]
    assert json.loads(found.to_json())["changes"][0] == {
        "subject": "version",
        "name": "torch",
        "field": "",
        "before": str(torch.__version__),
        "after": "9.9",
    }


# ----------------------------------------------------------------------------------------------------------
# Whole or not at all
# ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(saved: Path) -> None:
    """Wherever the room ends, the error is ours, the process lives, and the old file is all that is there."""
    size = saved.stat().st_size
    lock = len(entries_of(saved)[LOCK])
    limits = [0, 100, 3000, size - lock - 500, size - lock, size - 1]
    code = """
import json, resource, sys
from pathlib import Path
import torchquilt as tq
path = Path(sys.argv[1])
program, before = tq.load(path).program, path.read_bytes()
for limit in json.loads(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        tq.save(program, path)
    except tq.ArtifactError as error:
        assert isinstance(error.__cause__, OSError), error.__cause__
        assert "untouched" in str(error), error
    else:
        raise AssertionError(limit)
    assert path.read_bytes() == before, limit
    assert list(path.parent.iterdir()) == [path], limit
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
tq.save(program, path)
"""
    done = in_fresh_python(code, saved, json.dumps(limits))
    assert done.returncode == 0, done.stderr
    tq.load(saved)


def knows_nameless_files(folder: Path) -> bool:
    """Whether the file system can write a file that has no name yet."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR))
    except (OSError, AttributeError):
        return False
    return True


def test_a_process_that_is_killed_leaves_the_old_file(saved: Path) -> None:
    """Killed while torch writes or when all is written: the old file is there, and if possible no other."""
    code = """
import os, signal, sys
from pathlib import Path
import torchquilt as tq
from torchquilt.artifact import saving
path = Path(sys.argv[1])
program, before = tq.load(path).program, path.read_bytes()
for owner, name in ((saving._Sink, "write"), (os, "fsync")):
    child = os.fork()
    if child == 0:
        setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        tq.save(program, path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, name
    assert path.read_bytes() == before, name
    print(len(list(path.parent.iterdir())))
"""
    done = in_fresh_python(code, saved)
    assert done.returncode == 0, done.stderr
    if knows_nameless_files(saved.parent):
        assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_an_interruption_leaves_the_old_file(
    saved: Path, linear: GraphModule, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    """Ctrl-C in the midst of writing comes out as such, also where files have names from the start."""
    from torchquilt.artifact import saving

    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    before = saved.read_bytes()
    seen = []

    class Interrupted(saving._Sink):
        def __init__(self, file: Any) -> None:
            seen.append(len(list(saved.parent.iterdir())))
            super().__init__(SimpleNamespace(write=self.interrupt, seek=file.seek))

        def interrupt(self, data: Any) -> int:
            raise KeyboardInterrupt

    monkeypatch.setattr(saving, "_Sink", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        tq.save(linear, saved, X)
    assert seen == [1 if nameless and knows_nameless_files(saved.parent) else 2]
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_a_new_file_has_the_usual_rights_and_an_old_one_keeps_its_own(
    linear: GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    """As if the file had been opened and written, and not replaced."""
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    plain, path = tmp_path / "plain", tmp_path / "model.pt2"
    plain.touch()
    tq.save(linear, path, X)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    path.chmod(0o640)
    tq.save(linear, path, X)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(linear: GraphModule, tmp_path: Path) -> None:
    """The file that it leads to is replaced."""
    (tmp_path / "folder").mkdir()
    link = tmp_path / "latest.pt2"
    link.symlink_to(tmp_path / "folder/model.pt2")
    tq.save(linear, link, X)
    assert link.is_symlink()
    tq.load(tmp_path / "folder/model.pt2")


def test_a_folder_that_is_not_there_is_an_error_of_ours(linear: GraphModule, tmp_path: Path) -> None:
    """With the path in it."""
    with pytest.raises(tq.ArtifactError, match="could not be written") as caught:
        tq.save(linear, tmp_path / "nowhere/model.pt2", X)
    assert caught.value.path == str(tmp_path / "nowhere/model.pt2")


# ----------------------------------------------------------------------------------------------------------
# Files that are something else
# ----------------------------------------------------------------------------------------------------------


class Bomb:
    """An object that writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def pickled(value: object, **options: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(**entries: bytes) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FOREIGN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda mark: b"", "an empty file"),
    "text": (lambda mark: b"hello", "no zip archive"),
    "pickle": (lambda mark: pickle.dumps(Bomb(mark)), "a pickle"),
    "torch.save": (lambda mark: pickled(Bomb(mark)), "a pickle in a zip archive"),
    "old torch.save": (lambda mark: pickled(Bomb(mark), _use_new_zipfile_serialization=False), "a pickle"),
    "zip": (lambda mark: zipped(**{"a/b.txt": b"b"}), "a zip archive of 1 entries without models/model.json"),
    "empty zip": (lambda mark: zipped(), "a zip archive of 0 entries"),
    "TorchScript": (
        lambda mark: torch.jit.save(torch.jit.script(nn.ReLU()), buffer := io.BytesIO()) or buffer.getvalue(),
        "a pickle in a zip archive",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("reader", [tq.load, read_lock], ids=["load", "read_lock"])
def test_a_foreign_file_is_an_error_that_says_what_it_is(
    kind: str, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    """With its path and what was expected; a pickle in it is not run."""
    make, expected = FOREIGN[kind]
    path, mark = tmp_path / "model.pt2", tmp_path / "mark"
    path.write_bytes(make(mark))
    with pytest.raises(tq.ArtifactError) as caught:
        reader(path)
    assert expected in str(caught.value.got)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert not mark.exists()


def test_a_program_without_a_lock_is_an_error_with_a_remedy(linear: GraphModule, tmp_path: Path) -> None:
    """Another program wrote it; torch.export.load reads it, at one's own risk."""
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(linear, (X,)), path)
    with pytest.raises(tq.ArtifactError, match="without a lock") as caught:
        tq.load(path)
    assert "torch.export.load" in str(caught.value.remedy)


def test_a_missing_file_is_what_python_says_it_is(tmp_path: Path) -> None:
    """FileNotFoundError, with the path in it."""
    for reader in (tq.load, read_lock):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            reader(tmp_path / "nowhere.pt2")


def test_two_entries_of_one_name_are_an_error(saved: Path) -> None:
    """Readers of archives disagree on which of them counts."""
    with zipfile.ZipFile(saved, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"archive/{LOCK}", "{}")
    with pytest.raises(tq.ArtifactError, match="several entries of one name") as caught:
        tq.load(saved)
    assert caught.value.got == f"archive/{LOCK}"


def test_a_file_that_is_cut_off_anywhere_is_an_error(saved: Path) -> None:
    """At any length it is one of ours."""
    content = saved.read_bytes()
    for length in [*range(0, len(content), len(content) // 40), len(content) - 1]:
        saved.write_bytes(content[:length])
        with pytest.raises(tq.ArtifactError):
            tq.load(saved)


@pytest.mark.filterwarnings("ignore")
def test_a_bit_that_flips_anywhere_is_noticed_or_harmless(saved: Path, linear: GraphModule) -> None:
    """Either the error is ours, or the model is the same to the bit (padding and dates of the archive)."""
    content = saved.read_bytes()
    draw = random.Random(0)
    noticed = 0
    for _ in range(150):
        broken = bytearray(content)
        broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
        saved.write_bytes(broken)
        try:
            loaded = tq.load(saved)
        except tq.ArtifactError:
            noticed += 1
        else:
            assert torch.equal(loaded.module()(X), linear(X))
    assert noticed > 100


# ----------------------------------------------------------------------------------------------------------
# Files that were changed
# ----------------------------------------------------------------------------------------------------------


def weight_entry(path: Path, name: str = "fc.weight_int8") -> str:
    """The entry that holds a tensor."""
    (entry,) = {tensor.entry for tensor in read_lock(path).tensors if tensor.name == name}
    return entry


def test_a_tensor_that_was_changed_is_named(saved: Path) -> None:
    """With the digest that it should have and the one that it has."""
    entries = entries_of(saved)
    entry = weight_entry(saved)
    entries[entry] = bytes([entries[entry][0] ^ 1]) + entries[entry][1:]
    expected = next(entry_.sha256 for entry_ in read_lock(saved).entries if entry_.name == entry)
    write(saved, entries)
    with pytest.raises(
        tq.ArtifactError, match=r"not what was saved: tensor fc\.weight_int8 sha256\."
    ) as caught:
        tq.load(saved)
    assert caught.value.expected == expected
    assert caught.value.got == hashlib.sha256(entries[entry]).hexdigest()
    (change,) = caught.value.differences
    assert (change.subject, change.name, change.field) == ("tensor", "fc.weight_int8", "sha256")


def test_a_tensor_whose_bytes_cannot_be_read_is_named(saved: Path) -> None:
    """Damage around a tensor is told as precisely as damage in it."""
    entry = f"archive/{weight_entry(saved)}"
    with zipfile.ZipFile(saved) as archive:
        start = archive.getinfo(entry).header_offset
    content = saved.read_bytes()
    saved.write_bytes(content[:start] + b"XXXX" + content[start + 4 :])
    with pytest.raises(tq.ArtifactError, match=r"tensor fc\.weight_int8 content") as caught:
        tq.load(saved)
    assert "unreadable" in str(caught.value.got)


def test_all_that_was_changed_is_listed(saved: Path) -> None:
    """The error has one difference for each, and says how many there are."""
    entries = entries_of(saved)
    for name in ("fc.weight_int8", "fc.bias"):
        entries[weight_entry(saved, name)] = b"\0" * len(entries[weight_entry(saved, name)])
    del entries["data/sample_inputs/model.pt"]
    entries["data/weights/weight_99"] = b"more"
    write(saved, entries)
    with pytest.raises(tq.ArtifactError, match="and 3 more") as caught:
        tq.load(saved)
    assert {(change.subject, change.name) for change in caught.value.differences} == {
        ("entry", "data/weights/weight_99"),
        ("tensor", "fc.bias"),
        ("tensor", "fc.weight_int8"),
        ("example inputs", "data/sample_inputs/model.pt"),
    }


def test_a_tensor_is_checked_after_torch_made_it(saved: Path) -> None:
    """A lock that fits the bytes and not the tensor is found out: the digest, the dtype, the shape."""

    def change(lock: dict[str, Any]) -> None:
        (row,) = (row for row in lock["tensors"] if row["name"] == "fc.weight_int8")
        row["shape"], row["sha256"] = [16, 8], "0" * 64

    change_lock(saved, change)
    with pytest.raises(tq.ArtifactError, match=r"tensor fc\.weight_int8 shape, and 1 more") as caught:
        tq.load(saved)
    assert (caught.value.expected, caught.value.got) == ("(16, 8)", "(8, 16)")
    assert caught.value.differences[1].field == "sha256"


def test_a_scale_that_was_changed_is_told(saved: Path) -> None:
    """Also where digests were made to fit: the parameters are read from the program and compared."""
    (before,) = (row.scale for row in read_lock(saved).quantized if row.name == "x")

    def change(program: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = json.loads(json.dumps(program).replace(repr(before), "0.5"))
        return changed

    with pytest.raises(tq.ArtifactError, match="quantized tensor x scale") as caught:
        tq.load(forge(saved, in_program(change)))
    assert (caught.value.expected, caught.value.got) == (str(before), "0.5")


def test_an_operator_that_was_changed_is_told(saved: Path) -> None:
    """The program calls what the lock says that it calls."""

    def change(program: dict[str, Any]) -> None:
        nodes = program["graph_module"]["graph"]["nodes"]
        nodes[-1]["target"] = "torch.ops.quantized_decomposed.dequantize_per_tensor.tensor"

    forged = forge(saved, in_program(change))
    with pytest.raises(tq.ArtifactError, match=r"operator quantized_decomposed\.dequantize_per_tensor"):
        tq.load(forged)


def test_a_lock_that_was_edited_is_noticed(saved: Path) -> None:
    """Its digest no longer fits."""
    entries = entries_of(saved)
    entries[LOCK] = entries[LOCK].replace(b'"float32"', b'"float16"', 1)
    write(saved, entries)
    with pytest.raises(tq.ArtifactError, match="lock was changed"):
        tq.load(saved)


def test_a_lock_that_is_compressed_is_refused(saved: Path) -> None:
    """Torch compresses nothing, and a small file could unpack to more than there is memory."""
    entries = entries_of(saved)
    lock = entries.pop(LOCK)
    write(saved, entries)
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(f"archive/{LOCK}", lock, zipfile.ZIP_DEFLATED)
    with pytest.raises(tq.ArtifactError, match="compressed"):
        tq.load(saved)


def test_a_digest_that_is_kept_elsewhere_finds_out_a_forger(saved: Path) -> None:
    """A file that was rewritten, lock and all, loads; with the digest of the true lock it does not."""
    true = read_lock(saved).sha256
    forged = forge(saved, lambda entries: entries.update({".data/note": b"hello"}))
    tq.load(saved, sha256=true)
    tq.load(forged)
    with pytest.raises(tq.ArtifactError, match="not the file that was asked for") as caught:
        tq.load(forged, sha256=true)
    assert true in str(caught.value.expected)


def test_an_operator_that_is_not_known_here_is_an_error_that_says_what_to_do(saved: Path) -> None:
    """Who defines it has to be imported first."""
    forged = forge(
        saved,
        lambda entries: entries.update(
            {PROGRAM: entries[PROGRAM].replace(b"ops.aten.linear", b"ops.acme.linear")}
        ),
    )
    with pytest.raises(tq.ArtifactError, match="not known here") as caught:
        tq.load(forged)
    assert "torch.ops.acme.linear.default at the node linear" in str(caught.value.got)
    assert "import" in str(caught.value.remedy)


def test_a_program_that_this_torch_cannot_read_is_an_error_with_both_versions(saved: Path) -> None:
    """The cause is kept."""
    forged = forge(saved, in_program(lambda program: program["schema_version"].update(major=99)))
    with pytest.raises(tq.ArtifactError, match="torch cannot read") as caught:
        tq.load(forged)
    assert torch.__version__ in str(caught.value.expected)
    assert caught.value.__cause__ is not None


# ----------------------------------------------------------------------------------------------------------
# Files that attack
# ----------------------------------------------------------------------------------------------------------


class Target(nn.Module):
    """What is attacked: it has sizes, an input that is a dict, and a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Something that depends on a size."""
        return self.fc(batch["x"]) * batch["x"].shape[0]


BATCH = {"x": normal(3, 4)}


def code_for(mark: Path) -> str:
    """An expression that makes a file."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


def bare_code_for(mark: Path) -> str:
    """The same without a quote and without a dot, where names are cut up or quoted."""
    return f"exec(bytes({list(code_for(mark).encode())}))"


def everywhere(program: Any, key: str, value: object) -> None:
    """Give each field of a name a value."""
    if isinstance(program, dict):
        if key in program:
            program[key] = value
        for item in program.values():
            everywhere(item, key, value)
    elif isinstance(program, list):
        for item in program:
            everywhere(item, key, value)


def signature_of(program: dict[str, Any]) -> dict[str, Any]:
    """How the whole model is called."""
    found: dict[str, Any] = program["graph_module"]["module_call_graph"][0]["signature"]
    return found


def _sample_inputs(entries: dict[str, bytes], mark: Path) -> None:
    entries["data/sample_inputs/model.pt"] = pickled(Bomb(mark))


def _pickled_weight(entries: dict[str, bytes], mark: Path) -> None:
    config = json.loads(entries["data/weights/model_weights_config.json"])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    entries["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    entries[f"data/weights/{first['path_name']}"] = pickled(Bomb(mark))


def _old_weights(entries: dict[str, bytes], mark: Path) -> None:
    entries["data/weights/model.pt"] = pickled(Bomb(mark))


def _old_constants(entries: dict[str, bytes], mark: Path) -> None:
    entries["data/constants/model.pt"] = pickled(Bomb(mark))


def _constant(entries: dict[str, bytes], name: str, content: bytes) -> None:
    row = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    entries["data/constants/model_constants_config.json"] = json.dumps({"config": {"k": row}}).encode()
    entries[f"data/constants/{name}"] = content


def _pickled_constant(entries: dict[str, bytes], mark: Path) -> None:
    _constant(entries, "tensor_0", pickled(Bomb(mark)))


def _opaque_constant(entries: dict[str, bytes], mark: Path) -> None:
    _constant(entries, "opaque_obj_0", pickle.dumps(Bomb(mark)))


def _symbolic_size(entries: dict[str, bytes], mark: Path) -> None:
    in_program(lambda program: everywhere(program, "expr_str", code_for(mark)))(entries)


def _symbolic_size_in_a_text(entries: dict[str, bytes], mark: Path) -> None:
    text = f"Max(Integer(1), {code_for(mark)!r})"
    in_program(lambda program: everywhere(program, "expr_str", text))(entries)


def _guard(entries: dict[str, bytes], mark: Path) -> None:
    in_program(lambda program: program["guards_code"].append(f"{code_for(mark)} is None"))(entries)


def _name_of_an_input(entries: dict[str, bytes], mark: Path) -> None:
    old, new = json.dumps("batch_x").encode(), json.dumps(f"x={code_for(mark)}").encode()
    entries[PROGRAM] = entries[PROGRAM].replace(old, new)


def _name_of_a_tensor(entries: dict[str, bytes], mark: Path) -> None:
    new = json.dumps(f'fc.we"+str({bare_code_for(mark)})+"ight').encode()
    for name in (PROGRAM, "data/weights/model_weights_config.json"):
        entries[name] = entries[name].replace(b'"fc.weight"', new)


def _key_of_an_input(entries: dict[str, bytes], mark: Path) -> None:
    key = f'x"+str({bare_code_for(mark)})+"'
    entries["data/sample_inputs/model.pt"] = pickled((({key: BATCH["x"]},), {}))

    def change(program: dict[str, Any]) -> None:
        signature = signature_of(program)
        signature["in_spec"] = signature["in_spec"].replace(
            json.dumps('["x"]'), json.dumps(json.dumps([key]))
        )

    in_program(change)(entries)


def _default_factory(entries: dict[str, bytes], mark: Path) -> None:
    context = {
        "default_factory_module": mark.with_suffix("").name,
        "default_factory_name": "x",
        "dict_context": ["a"],
    }
    _structure_of_the_output(entries, "collections.defaultdict", context)


def _enum_key(entries: dict[str, bytes], mark: Path) -> None:
    context = json.dumps([{"__enum__": True, "fqn": f"{mark.with_suffix('').name}:x", "name": "a"}])
    _structure_of_the_output(entries, "builtins.dict", context)


def _structure_of_the_output(entries: dict[str, bytes], kind: str, context: object) -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf]}])
    in_program(lambda program: signature_of(program).update(out_spec=spec))(entries)


ATTACKS = [
    _sample_inputs,
    _pickled_weight,
    _old_weights,
    _old_constants,
    _pickled_constant,
    _opaque_constant,
    _symbolic_size,
    _symbolic_size_in_a_text,
    _guard,
    _name_of_an_input,
    _name_of_a_tensor,
    _key_of_an_input,
    _default_factory,
    _enum_key,
]


@pytest.fixture(scope="module")
def target() -> GraphModule:
    """The model that is attacked."""
    dynamic = {"batch": {"x": {0: Dim("rows", max=9)}}}
    return tq.convert_pt2e(tq.prepare_pt2e(export(Target(), BATCH, dynamic_shapes=dynamic), Nothing()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_file_is_executed(
    attack: Callable[[dict[str, bytes], Path], None],
    target: GraphModule,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch's own loader runs the code that is hidden there; ours refuses the file, and nothing has run."""
    mark = tmp_path / "intruder.ran"
    (tmp_path / "intruder.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "intruder", raising=False)
    tq.save(target, tmp_path / "model.pt2", (BATCH,))
    forged = forge(tmp_path / "model.pt2", lambda entries: attack(entries, mark))

    with pytest.raises(tq.ArtifactError) as caught:
        tq.load(forged)
    assert not mark.exists()
    assert "could run code" in str(caught.value)
    assert caught.value.path == str(forged)

    with contextlib.suppress(Exception):  # the attack is a real one, whatever becomes of the model
        program = torch.export.load(forged)
        args, kwargs = program.example_inputs or ((BATCH,), {})
        program.module()(*args, **kwargs)
    assert mark.exists()


@pytest.mark.parametrize("name", ["x=1", "*x", "x, y", "x):\n  pass", "x: int"])
def test_a_parameter_is_an_identifier(name: str) -> None:
    """The names of inputs become parameters of a function that torch writes as text."""
    keyword = {"type": "builtins.dict", "context": json.dumps([name]), "children_spec": []}
    spec = json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": [keyword, keyword]}])
    for field, value in (("in_spec", spec), ("forward_arg_names", [name])):
        with pytest.raises(tq.ArtifactError, match="There is a "):
            screening.check_program(json.dumps({"signature": {field: value}}).encode())


@pytest.mark.parametrize(
    "target_",
    [
        "torch.os.system",
        "_operator.methodcaller",
        "math.__loader__",
        "torch.ops.load_library",
        "torch.hub.load",
        "#a:b",
    ],
)
def test_a_node_calls_an_operator_or_arithmetic(saved: Path, target_: str) -> None:
    """Torch would find any function that can be reached from it, Python or math."""

    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][-1]["target"] = target_

    with pytest.raises(tq.ArtifactError, match="a function") as caught:
        tq.load(forge(saved, in_program(change)))
    assert target_ in str(caught.value.got)


@pytest.mark.parametrize(
    "entry", ["data/aotinductor/model/model.so", "data/constants/custom_obj_0", "extra/evil"]
)
def test_an_entry_that_no_program_needs_is_refused(saved: Path, entry: str) -> None:
    """A shared library, an object, a file that nobody asked for."""
    with pytest.raises(tq.ArtifactError, match="an entry") as caught:
        tq.load(forge(saved, lambda entries: entries.update({entry: b"x"})))
    assert caught.value.got == entry


@pytest.mark.parametrize(
    "guard",
    [
        "(lambda: 1)()",
        "[1 for x in L]",
        "L['x'].__class__ is None",
        "L['x'].tofile(1)",
        "torch.load('x')",
        "torch.hub.load('x')",
        "f'{L}'",
        "(x := 1)",
        "1 +",
    ],
)
def test_a_guard_is_a_comparison_and_nothing_else(guard: str) -> None:
    """Calls of anything but sizes and arithmetic are refused, as is what is no expression."""
    with pytest.raises(tq.ArtifactError, match="an expression"):
        screening.check_program(json.dumps({"guards_code": [guard]}).encode())


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[0] <= 32",
        "L['batch']['x'][0].size()[1] == 2*L['y'].size()[0]",
        "math.isnan(L['x'])",
        "max(1, L['n']) // 2 % 8 == 0",
        "L['mode'] == 'fast'",
        "L['cache'].keys[0].stride()[1] != 4",
        "not (L['x'].size()[0] > 3 and -L['n'] < 2)",
    ],
)
def test_guards_that_torch_writes_pass(guard: str) -> None:
    """Sizes, numbers and texts of inputs, compared."""
    screening.check_program(json.dumps({"guards_code": [guard]}).encode())


@pytest.mark.parametrize("depth", [100, 400, 700, 5000, 100_000])
def test_a_program_that_is_nested_too_deep_is_refused(depth: int) -> None:
    """The error is ours, however deep it is."""
    text = b'{"nodes": ' + b"[" * depth + b'"x"' + b"]" * depth + b"}"
    with pytest.raises(tq.ArtifactError):
        screening.check_program(text)


@pytest.mark.parametrize("name", ["tensor_values", "as_string_to_argument", "range_constraints"])
def test_a_key_that_is_a_name_hides_nothing(name: str) -> None:
    """What is called "metadata" or "arg" among things by name is looked at as any other."""
    for hidden in ("metadata", "arg", "as_string"):
        program = {name: {hidden: {"expr_str": "__import__(1)", "as_operator": "torch.os.system"}}}
        with pytest.raises(tq.ArtifactError, match="an expression"):
            screening.check_program(json.dumps(program).encode())


def test_a_text_in_the_place_of_a_number_is_refused() -> None:
    """Torch does not look at the types of what it reads."""
    for field in ("as_int", "hint", "min_val", "some_new_field"):
        with pytest.raises(tq.ArtifactError, match="a text"):
            screening.check_program(json.dumps({"graph": {field: "exec(1)"}}).encode())


@pytest.mark.parametrize(
    "program",
    [
        {"as_custom_obj": {"name": "a", "class_fqn": "b"}},
        {"custom_obj_values": {"a": {}}},
        {"nodes": [{"target": "_operator.add", "metadata": {"stack_trace": 1}}]},
        {"as_float": "exec(1)"},
        {"fqn": "a'b"},
        {"buffer_name": "a\nb"},
        {"parameter_name": "a\\"},
        {"a'b": 1},
        {"in_spec": "nonsense"},
        {"out_spec": "[1, {}]"},
        {"out_spec": '[1, {"type": null, "context": "{", "children_spec": []}]'},
    ],
    ids=str,
)
def test_what_is_neither_a_name_nor_arithmetic_is_refused(program: dict[str, Any]) -> None:
    """Objects, notes that are more than texts, quotes and line breaks in names, broken structures."""
    with pytest.raises(tq.ArtifactError, match="could run code"):
        screening.check_program(json.dumps(program).encode())


@pytest.mark.parametrize("kind", ["list", "open"])
def test_a_default_factory_is_a_plain_type(kind: str) -> None:
    """A defaultdict of lists passes; any other function that could be called for a missing key does not."""
    context = {"default_factory_module": "builtins", "default_factory_name": kind, "dict_context": ["a"]}
    leaf = {"type": None, "context": None, "children_spec": []}
    tree = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
    program = json.dumps({"out_spec": json.dumps([1, tree])}).encode()
    if kind == "list":
        screening.check_program(program)
    else:
        with pytest.raises(tq.ArtifactError, match="a default factory"):
            screening.check_program(program)


@pytest.mark.parametrize(
    "text",
    [
        b"not json",
        b"[]",
        b'{"config": []}',
        b'{"config": {"a": 1}}',
        b'{"config": {"a": {"path_name": "weight_0"}}}',
        b'{"config": {"a": {"path_name": "../weight_0", "use_pickle": false}}}',
        b'{"config": {"a\'b": {"path_name": "weight_0", "use_pickle": false}}}',
    ],
    ids=str,
)
def test_a_list_of_tensors_leads_to_plain_bytes_in_the_archive(text: bytes) -> None:
    """Every other form is refused."""
    with pytest.raises(tq.ArtifactError, match="could run code"):
        screening.check_payloads(text)


def test_the_screening_knows_every_text_of_torchs_schema() -> None:
    """A new torch that writes new texts, or new tables by name, fails here and not at a user's."""
    from torch._export.serde import schema

    texts, tables = set(), set()
    seen: set[type] = set()

    def visit(kind: type) -> None:
        if kind in seen:
            return
        seen.add(kind)
        for field, hint in typing.get_type_hints(kind, globalns=vars(schema)).items():
            parts = list(_parts(hint))
            if any(typing.get_origin(part) is dict for part in parts):
                tables.add(field)
            elif str in parts:
                texts.add(field)
            for part in parts:
                if isinstance(part, type) and part.__module__ == schema.__name__:
                    visit(part)

    visit(schema.ExportedProgram)
    visit(schema.PayloadConfig)
    assert tables - {"metadata"} == screening.NAMED
    assert texts <= set(screening._RULES) | screening._REFUSED
    assert {"expr_str", "guards_code", "target"} <= texts


def _parts(hint: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [hint, *(part for argument in typing.get_args(hint) for part in _parts(argument))]
