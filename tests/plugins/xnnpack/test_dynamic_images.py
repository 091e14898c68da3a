"""Dynamic convolutions beside anything else: what is converted is what runs.

Around each are float and dynamic operators that read or return images, since the delegate keeps images in
another layout around its convolutions. Models agree with the runtime up to the order of float additions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import torchquilt as tq
from plugins.lowered import Lowered, lower
from plugins.oracle import outputs_of
from strategies import Fn, export, name_of, normal, quantize, sqnr
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
STATIC = get_symmetric_quantization_config(is_per_channel=True)
LEAST = 60


def image(channels: int = 4, size: int = 8, samples: int = 1) -> torch.Tensor:
    """Normal numbers, one pixel of them large."""
    torch.manual_seed(0)
    x = torch.randn(samples, channels, size, size)
    x[:, :, 2, 2] *= 30
    return x


def run_both(
    module: nn.Module, x: torch.Tensor, quantizer: XNNPACKQuantizer | None = None
) -> tuple[torch.fx.GraphModule, Lowered]:
    """The converted model and its program, each output of which has been compared."""
    converted = quantize(module.eval(), quantizer or XNNPACKQuantizer().set_global(DYNAMIC), x)
    lowered = lower(converted, x)
    for expected, found in zip(outputs_of(converted, (x,)), lowered.run(x), strict=True):
        assert sqnr(expected, found) > LEAST
    return converted, lowered


def three(inputs: int = 4, outputs: int = 4, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size of an image."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def squeeze_and_excite(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A gate for each channel, computed from its mean."""
    y = m.a(x)
    gates = m.up(functional.relu(m.down(y.mean((2, 3)))))
    return y * torch.sigmoid(gates)[:, :, None, None]


def several_readers(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """An image that is read by convolutions, a linear and float operators, beside each other."""
    part = x[:, :2]
    pooled = functional.avg_pool2d(part, 3, 1, 1)
    return (
        m.b(functional.relu6(x)),
        torch.cat([x, part], 1),
        pooled,
        m.a(x),
        m.rows(x),
        functional.hardswish(x),
    )


def fire(m: Any, x: torch.Tensor) -> torch.Tensor:
    """A pointwise convolution and a larger one that read one image, joined."""
    y = functional.relu(m.squeeze(x))
    return torch.cat([functional.relu(m.a(y)), functional.relu(m.b(y))], 1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "behind the normalization of an image": lambda: Fn(lambda m, x: m.a((x - 0.4) / 0.2), a=three()),
    "beside other readers": lambda: Fn(several_readers, a=three(), b=three(), rows=nn.Linear(8, 3)),
    "permute, linear, permute": lambda: Fn(
        lambda m, x: m.b(m.rows(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        a=three(), b=three(6), rows=nn.Linear(4, 6),
    ),
    "rows of an image, before and behind": lambda: Fn(
        lambda m, x: m.rows(m.a(m.rows(x))), a=three(), rows=nn.Linear(8, 8)
    ),
    "residual": lambda: Fn(
        lambda m, x: functional.relu(m.b(functional.relu(m.a(x)))) + x, a=three(4, 8), b=three(8, 4)
    ),
    "chain, reshape, slice": lambda: Fn(
        lambda m, x: m.b(m.a(m.a(x))[:, 1:].reshape(1, 3, 16, 4)), a=three(), b=three(3)
    ),
    "squeeze and excite": lambda: Fn(
        squeeze_and_excite, a=three(), down=nn.Linear(4, 2), up=nn.Linear(2, 4)
    ),
    "fire": lambda: Fn(fire, squeeze=nn.Conv2d(4, 6, 1), a=nn.Conv2d(6, 4, 1), b=three(6)),
    "norm, pool, head": lambda: Fn(
        lambda m, x: m.head(torch.flatten(functional.max_pool2d(m.b(m.a(m.norm(x))), 2), 1)),
        norm=nn.LayerNorm(8), a=three(), b=nn.ConvTranspose2d(4, 3, 2, 2), head=nn.Linear(192, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_dynamic_convolution_runs_beside_anything(name: str) -> None:
    """Runtime and converted model agree, whatever is before, beside and behind the convolutions."""
    torch.manual_seed(0)

    _, lowered = run_both(MODELS[name](), image())

    assert any("qdint8" in kernel for kernel in lowered.kernels)


def test_operators_around_a_dynamic_convolution_share_its_delegate() -> None:
    """Float operators before and behind it, and a chain of it, make one call of the delegate."""
    _, lowered = run_both(MODELS["residual"](), image())

    assert len(lowered.program.delegates) == 1


@pytest.mark.parametrize("dynamic", [("2",), ("0", "4")], ids=["between static ones", "around a static one"])
def test_it_runs_beside_static_operators(dynamic: tuple[str, ...]) -> None:
    """An image that one side hands to the other has the layout that the other reads."""
    torch.manual_seed(0)
    quantizer = XNNPACKQuantizer().set_global(STATIC)
    for name in dynamic:
        quantizer.set_module_name(name, DYNAMIC)
    module, x = nn.Sequential(three(), nn.ReLU(), three(), nn.ReLU(), three()).eval(), normal(1, 4, 8, 8)
    converted = quantize(module, quantizer, x)

    (expected,), (found,) = outputs_of(converted, (x,)), lower(converted, x).run(x)

    assert sqnr(expected, found) > 40


def reading_one_image() -> nn.Module:
    """Convolutions of all kinds, one of them called twice, and a linear, that read one image."""
    parts = {
        "one": nn.Conv2d(4, 4, 1), "other": nn.Conv2d(4, 5, 1), "grouped": nn.Conv2d(4, 4, 1, groups=2),
        "strided": nn.Conv2d(4, 4, 1, stride=2), "padded": nn.Conv2d(4, 4, 1, padding=1),
        "same": nn.Conv2d(4, 4, 1, padding="same", dilation=2), "three": three(),
        "dilated": three(dilation=2), "turned": nn.ConvTranspose2d(4, 4, 1),
        "larger": nn.ConvTranspose2d(4, 4, 3), "rows": nn.Linear(8, 3),
    }  # fmt: skip
    names = (*parts, "three", "one")
    return Fn(lambda m, x: tuple(getattr(m, name)(x) for name in names), **parts)


def test_all_that_read_one_image_are_right() -> None:
    """Those that share a dynamic quantize agree with the runtime, and so do those that do not."""
    torch.manual_seed(0)

    converted, _ = run_both(reading_one_image(), image())

    chosen = [str(node.target) for node in converted.graph.nodes if "choose_qparams" in str(node.target)]
    assert sorted(chosen) == [
        "quantized_decomposed.choose_qparams.tensor",
        *["quantized_decomposed.choose_qparams_per_token_asymmetric.default"] * (len(chosen) - 1),
    ]


def test_a_pointwise_convolution_has_a_scale_for_each_pixel() -> None:
    """One bright pixel costs the others nothing, and a batch may have several samples."""
    torch.manual_seed(0)
    module, x = nn.Conv2d(4, 4, 1).eval(), image(samples=3)

    converted, lowered = run_both(module, x)

    with torch.no_grad():
        assert sqnr(module(x), converted(x)) > 40
        assert sqnr(module(x), lowered.run(x)[0]) > 40


@pytest.mark.parametrize("behind", [nn.Identity(), nn.ReLU(), nn.BatchNorm2d(6)], ids=name_of)
def test_pointwise_convolutions_follow_each_other(behind: nn.Module) -> None:
    """Each is written in another form, which the next one reads: also where it is the same layer again."""
    torch.manual_seed(0)
    again, wide = nn.Conv2d(6, 6, 1), nn.Conv2d(4, 6, 1)
    module = nn.Sequential(wide, behind, again, behind, again, nn.Conv2d(6, 3, 1, bias=False)).eval()

    converted, _ = run_both(module, image(samples=2))

    takers = [row.quantizer for row in tq.ledger_of(converted) if row.op == "aten.conv2d.default"]
    assert takers == ["XNNPACKQuantizer"] * 4


def test_a_pointwise_convolution_is_saved_and_has_a_reference(tmp_path: Path) -> None:
    """A loaded model computes the same bits; the integer reference agrees."""
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1)).eval(), image()
    prepared = tq.prepare_pt2e(export(module, x), XNNPACKQuantizer().set_global(DYNAMIC))
    converted = tq.convert_pt2e(prepared)

    tq.save(converted, tmp_path / "model.tq", (x,))

    with torch.no_grad():
        assert torch.equal(tq.load(tmp_path / "model.tq").module()(x), converted(x))
        reference = tq.convert_pt2e(prepared, use_reference_representation=True)
        assert sqnr(converted(x), reference(x)) > LEAST


@pytest.mark.parametrize("way", ["filter by operator", "filter by name", "type", "operator", "name"])
def test_rules_about_a_pointwise_convolution_stay_about_it(way: str) -> None:
    """Whatever names the convolution that the user wrote quantizes it, and nothing else."""
    quantizer = XNNPACKQuantizer()
    conv2d = torch.ops.aten.conv2d.default
    if way.startswith("filter"):
        quantizer.set_global(DYNAMIC)
    if way == "filter by operator":
        quantizer.set_filter_function(lambda node: node.target is conv2d)
    elif way == "filter by name":
        quantizer.set_filter_function(lambda node: node.name == "conv2d")
    elif way == "name":
        quantizer.set_module_name("0", DYNAMIC)
    else:
        quantizer.set_object_type(nn.Conv2d if way == "type" else conv2d, DYNAMIC)
    module = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Linear(8, 8)).eval()

    converted = quantize(module, quantizer, image())

    assert [row.node for row in tq.ledger_of(converted) if row.is_quantized] == ["conv2d"]


# ----------------------------------------------------------------------------------------------------------
# Random ones
# ----------------------------------------------------------------------------------------------------------

#: Name → what is done with an image of four channels and eight by eight pixels; it returns another one.
STEPS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "a": lambda m, x: m.a(x),
    "b": lambda m, x: m.b(x),
    "a again": lambda m, x: m.a(x),
    "pointwise": lambda m, x: m.pointwise(x),
    "grouped": lambda m, x: m.grouped(x),
    "turned": lambda m, x: m.turned(x),
    "rows": lambda m, x: m.rows(x),
    "channels": lambda m, x: m.channels(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "relu": lambda m, x: functional.relu(x),
    "hardswish": lambda m, x: functional.hardswish(x),
    "scaled": lambda m, x: x * m.scale,
    "shifted": lambda m, x: (x - 0.4) / 2,
    "pooled": lambda m, x: functional.max_pool2d(x, 3, 1, 1),
    "gated": lambda m, x: x * torch.sigmoid(m.channels(x.mean((2, 3))))[:, :, None, None],
    "joined": lambda m, x: torch.cat([x, x[:, :2] + 1], 1)[:, 1:5],
    "folded": lambda m, x: x.reshape(1, 8, 4, 8).transpose(1, 2).reshape(1, 4, 8, 8),
}


def random_network(plan: list[tuple[str, int]], returned: list[int]) -> nn.Module:
    """An image through steps, each of which reads an earlier image or the sum of the last two.

    Args:
        plan: name of a step and how far back it reads; of 0, the sum of the last two.
        returned: images that are returned beside the last one, counted from the end.
    """

    def run(m: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images = [x]
        for name, back in plan:
            source = (
                images[-1] + images[-min(2, len(images))] if back == 0 else images[-min(back, len(images))]
            )
            images.append(STEPS[name](m, source))
        return (images[-1], *(images[-1 - number] + 1 for number in returned if number < len(images)))

    return Fn(
        run, a=three(), b=three(), pointwise=nn.Conv2d(4, 4, 1), grouped=three(groups=2),
        turned=nn.ConvTranspose2d(4, 4, 3, padding=1), rows=nn.Linear(8, 8), channels=nn.Linear(4, 4),
        scale=nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5),
    )  # fmt: skip


networks = st.builds(
    random_network,
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 3)), min_size=3, max_size=9).filter(
        lambda plan: {"a", "b", "pointwise", "grouped", "turned", "rows"} & {name for name, _ in plan}
    ),
    st.lists(st.integers(1, 4), max_size=2, unique=True),
)


def agrees(module: nn.Module) -> None:
    """Quantize and lower a random network, and compare."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    converted = quantize(module.eval(), XNNPACKQuantizer().set_global(DYNAMIC), x)
    for expected, found in zip(outputs_of(converted, (x,)), lower(converted, x).run(x), strict=True):
        assert sqnr(expected, found) > 40


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(networks)
def test_random_networks_of_images_run_as_converted(module: nn.Module) -> None:
    """Dynamic convolutions and linears in any order, with float operators between them."""
    agrees(module)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(networks)
def test_many_random_networks_of_images_run_as_converted(module: nn.Module) -> None:
    """As above, many of them, others each time."""
    agrees(module)
