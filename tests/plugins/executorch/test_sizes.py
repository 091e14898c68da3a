"""The sizes that a program takes: those of the model, or a warning and the sizes that it has."""

from __future__ import annotations

import contextlib
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim

import torchquilt as tq
from plugins.executorch.models import converted, xnnpack
from strategies import normal
from torchquilt.lowering import Dimension
from torchquilt_executorch import sizes

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long


def network() -> nn.Module:
    """A convolution and what stands behind it."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("samples", [4, 20])
def test_a_batch_of_any_size_that_was_exported_runs(samples: int, is_dynamic: bool) -> None:
    """Also behind a convolution, for which torch would choose a kernel by the size; nothing is warned of."""
    x = normal(samples, 3, 8, 8)
    model = converted(network(), xnnpack(is_dynamic=is_dynamic), x, dynamic_shapes=({0: Dim("b", max=64)},))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        program = tq.lower(model, (x,), verify=True)
    batch = program.io.inputs[0].shape[0]
    assert (batch.low, batch.high) in ((0, 64), (1, 64))  # whichever torch takes for the smallest
    for size in (1, 2, 15, 16, 64):
        other = normal(size, 3, 8, 8)
        assert (program.run(other) - model(other)).abs().max() < 0.02, size


def test_a_size_that_is_too_large_is_named_with_the_range() -> None:
    """Before the runtime sees it."""
    x = normal(4, 8)
    model = converted(nn.Linear(8, 4), xnnpack(), x, dynamic_shapes=({0: Dim("b", max=64)},))
    with pytest.raises(tq.ProgramInputError) as caught:
        tq.lower(model, (x,)).run(normal(65, 8))
    assert "..64" in str(caught.value.expected)
    assert caught.value.got == "float32[65, 8]"


def test_without_a_largest_size_that_of_the_example_is_told() -> None:
    """ExecuTorch takes it for the largest one; the program says so, and a warning how to give another."""
    x = normal(4, 8)
    model = converted(nn.Linear(8, 4), xnnpack(), x, dynamic_shapes=({0: Dim.DYNAMIC},))
    with pytest.warns(UserWarning, match="exported without a largest size of input") as caught:
        program = tq.lower(model, (x,))
    assert "dimension 0 of input: 2..4 of 2 and more" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert [port.shape[0].high for port in (*program.io.inputs, *program.io.outputs)] == [4, 4]
    with pytest.raises(tq.ProgramInputError):
        program.run(normal(5, 8))


@pytest.mark.parametrize(("samples", "sizes_left"), [(4, (2, 15)), (20, (16, 64))])
def test_an_operator_that_takes_sizes_away_is_named(
    monkeypatch: pytest.MonkeyPatch, samples: int, sizes_left: tuple[int, int]
) -> None:
    """As a convolution does where torch chooses its kernel: less than 16 samples, or 16 and more."""
    monkeypatch.setattr(sizes, "kept", contextlib.nullcontext)
    x = normal(samples, 3, 8, 8)
    model = converted(network(), xnnpack(), x, dynamic_shapes=({0: Dim("b", min=2, max=64)},))
    with pytest.warns(UserWarning, match=r"fixes sizes in conv2d .*aten.conv2d.default") as caught:
        program = tq.lower(model, (x,))
    told = " ".join(str(one.message) for one in caught)
    assert "dimension 0 of input: {}..{} of 2..64".format(*sizes_left) in told
    batch = program.io.inputs[0].shape[0]
    assert isinstance(batch, Dimension)
    assert (batch.low, batch.high) == sizes_left


def test_global_flags_are_as_they_were() -> None:
    """Lowering leaves torch's choice of kernels as the program has set it."""
    # A vendor's quantizer that another test made may have set them, too.
    with torch.backends.nnpack.flags(enabled=True), torch.backends.mkldnn.flags(enabled=True):
        with sizes.kept():
            assert not torch.backends.mkldnn.enabled
        tq.lower(converted(nn.Linear(8, 4), xnnpack(), normal(3, 8)), (normal(3, 8),))
        assert torch.backends.mkldnn.enabled
        assert torch._C._get_nnpack_enabled()


def test_threads_that_lower_at_once_leave_the_flags_as_they_were() -> None:
    """A thread that begins while another one traces waits for it."""
    with torch.backends.mkldnn.flags(enabled=True):
        found = []

        def second() -> None:
            with sizes.kept():
                found.append(torch.backends.mkldnn.enabled)

        thread = threading.Thread(target=second)
        with sizes.kept():
            thread.start()
            thread.join(0.1)
            assert not found
        thread.join()
        assert found == [False]
        assert torch.backends.mkldnn.enabled
