"""Random small graphs through the whole flow: what must hold whatever the model is."""

from __future__ import annotations

import io
import warnings

import torch
from hypothesis import given, settings
from torch.export import ExportedProgram
from torch.fx import GraphModule

import torchquilt as tq
from strategies import RandomModel, annotated, export, random_models, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

# Eight bits on a signal of an ordinary shape leave noise of a hundredth of it (40 dB). A path of up to eight
# operators, concatenated with larger tensors and cut out again, has to stay ten times below the signal.
LEAST_SQNR = 20.0


def assert_close(quantized: GraphModule, model: RandomModel) -> None:
    """Shapes and dtypes are the float model's, and the noise is at least ten times below the signal."""
    with torch.no_grad():
        for reference, other in zip(model(model.example), quantized(model.example), strict=True):
            assert (other.shape, other.dtype) == (reference.shape, reference.dtype)
            if reference.norm() > 1e-3:
                assert sqnr(reference, other) >= LEAST_SQNR
            else:
                torch.testing.assert_close(other, reference, atol=1e-2, rtol=0)


def prepare_leniently(exported: ExportedProgram, quantizer: tq.Quantizer) -> GraphModule:
    """Prepared, also where it turns out that nothing in a random graph can be quantized."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tq.prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)


def run(model: RandomModel, **asked: bool) -> tuple[GraphModule, GraphModule]:
    """The whole flow with XNNPACK's quantizer; the prepared and the converted model."""
    x = model.example
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(**asked))
    prepared = prepare_leniently(export(model, x), quantizer)
    return prepared, tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))


@settings(max_examples=60)
@given(random_models())
def test_static_quantization_stays_near_the_float_model(model: RandomModel) -> None:
    """A random graph that is quantized statically has its shapes, its dtypes, and noise below a tenth."""
    _, quantized = run(model, is_per_channel=True)
    assert_close(quantized, model)


@settings(max_examples=40)
@given(random_models())
def test_dynamic_quantization_stays_near_the_float_model(model: RandomModel) -> None:
    """A random graph that is quantized dynamically has its shapes, its dtypes, and noise below a tenth."""
    _, quantized = run(model, is_per_channel=True, is_dynamic=True)
    assert_close(quantized, model)


@settings(max_examples=25)
@given(random_models())
def test_the_flow_leaves_the_exported_model_alone(model: RandomModel) -> None:
    """Graph, weights and outputs of the exported program are the same before and after."""
    x = model.example
    exported = export(model, x)
    text = str(exported.graph)
    state = {name: tensor.clone() for name, tensor in exported.state_dict.items()}
    before = exported.module()(x)
    prepared = prepare_leniently(
        exported, XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    )
    tq.convert_pt2e(tq.calibrate(prepared, [(x,)]))
    assert str(exported.graph) == text
    assert list(exported.state_dict) == list(state)
    assert all(torch.equal(exported.state_dict[name], state[name]) for name in state)
    for old, new in zip(before, exported.module()(x), strict=True):
        assert torch.equal(old, new)


@settings(max_examples=25)
@given(random_models())
def test_what_is_annotated_is_what_is_quantized(model: RandomModel) -> None:
    """Each annotated tensor is quantized after convert; a model without annotations gets no q/dq at all."""
    prepared, quantized = run(model)
    specs = [
        spec
        for found in annotated(prepared).values()
        for spec in (*found.input_qspec_map.values(), found.output_qspec)
        if spec is not None
    ]
    dequantized = {
        node.target for node in quantized.graph.nodes if "dequantize" in str(node.target) and node.users
    }
    assert bool(specs) == bool(dequantized)
    nodes = {node.name: node for node in quantized.graph.nodes}
    for name, found in annotated(prepared).items():
        if found.output_qspec is not None:
            assert all("quantize" in str(user.target) for user in nodes[name].users)


@settings(max_examples=12)
@given(random_models())
def test_a_saved_model_gives_the_same_bits(model: RandomModel) -> None:
    """A converted graph that is exported, saved and loaded again gives outputs equal to the last bit."""
    x = model.example
    _, quantized = run(model, is_per_channel=True)
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(quantized, (x,)), buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    for old, new in zip(quantized(x), loaded(x), strict=True):
        assert torch.equal(old, new)
