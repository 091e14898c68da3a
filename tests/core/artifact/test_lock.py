"""The lock: what it says of a saved model, that it is a value, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from artifacts import Linear, X, change_lock, composed, in_fresh_python, made, xnnpack
from strategies import (
    INT8,
    WEIGHT,
    ByFunction,
    Fn,
    Nothing,
    export,
    normal,
    one_call,
    quantize,
    weights_of,
)
from torchquilt.artifact import Artifact, Lock, diff, read_lock
from torchquilt_executorch_embedding import ExecuTorchEmbeddingQuantizer
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

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


def test_the_recipe_in_a_lock_makes_an_equal_quantizer(tmp_path: Path) -> None:
    """Every rule is in it, to the smallest scale, though the words for people leave that out."""
    config = get_symmetric_quantization_config(is_per_channel=True)
    coarse = attrs.evolve(config, input_activation=attrs.evolve(config.input_activation, eps=2.0**-12))
    quantizer = tq.ComposableQuantizer(
        [
            ExecuTorchEmbeddingQuantizer().set_module_name("tokens", None),
            tq.ComposableQuantizer([XNNPACKQuantizer().set_global(coarse).set_object_type(nn.ReLU, None)]),
        ]
    )
    program = export(nn.Sequential(Linear(), nn.ReLU()), X)
    with pytest.warns(UserWarning, match="tokens"):
        prepared = tq.prepare_pt2e(program, quantizer, strict=False)
    lock = tq.save(tq.convert_pt2e(tq.calibrate(prepared, [X])), tmp_path / "model.pt2", X)
    assert lock.recipe is not None
    assert tq.Recipe.from_toml(lock.recipe).quantizer() == quantizer


class Derived(XNNPACKQuantizer):
    """Does who knows what."""


@pytest.mark.parametrize(
    "quantizer",
    [
        Nothing(),
        tq.ComposableQuantizer([xnnpack(), Nothing()]),
        Derived().set_global(get_symmetric_quantization_config()),
        xnnpack().set_filter_function(lambda node: True),
    ],
    ids=["own", "composed with one's own", "derived", "filtered"],
)
def test_a_quantizer_that_no_recipe_makes_has_none(quantizer: tq.Quantizer, tmp_path: Path) -> None:
    """The words for people are there all the same, and name a filter function."""
    lock = tq.save(quantize(Linear(), quantizer, X), tmp_path / "model.pt2", X)
    assert lock.recipe is None
    assert lock.quantizer == repr(quantizer)
    assert ("filter: " in lock.quantizer) == (type(quantizer) is XNNPACKQuantizer)


def test_a_model_that_says_nothing_of_itself_has_no_origin(linear: GraphModule, tmp_path: Path) -> None:
    """Quantizer, capabilities and ledger are None, and the rest of the lock is there."""
    program = torch.export.export(linear, (X,))
    program.graph_module.meta.clear()
    lock = tq.save(program, tmp_path / "model.pt2")
    assert (lock.quantizer, lock.recipe, lock.capabilities, lock.ledger) == (None, None, None, None)
    assert lock.plugins == ()
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
    """A lock that is written and read again is equal, with the same digest."""
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
    assert 'recipe: global = "static_int8_per_channel" → global = "dynamic_int8_per_channel"' in lines
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
