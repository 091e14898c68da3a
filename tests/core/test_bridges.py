"""Quantizers of another library: wrapped by the plugin that is a bridge to it, or an error that names it."""

from __future__ import annotations

import pytest
from torchao.quantization.pt2e import quantizer as theirs

import torchquilt as tq
from torchquilt.errors import PluginError
from torchquilt.plugins import Manifest, registry
from torchquilt.plugins.discovery import BLOCK_VARIABLE


class OfTorchao(theirs.Quantizer):  # type: ignore[misc]
    """A quantizer of torchao's protocol that annotates nothing."""

    def annotate(self, model: object) -> object:
        """Leave the model as it is."""
        return model

    def validate(self, model: object) -> None:
        """Nothing to check."""


def test_without_the_bridge_the_error_has_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer of torchao is no object with annotate like any other: its annotations are not ours."""
    monkeypatch.setenv(BLOCK_VARIABLE, "torchao")

    with pytest.raises(tq.IntentError, match="quantizer of torchao, and the bridge") as caught:
        tq.ComposableQuantizer([OfTorchao()])
    assert "pip install torchquilt-torchao" in str(caught.value)
    assert "'torchao'" in str(caught.value)


def test_with_the_bridge_it_is_wrapped() -> None:
    """The function that the manifest names makes a quantizer of it, which keeps its name."""
    (made,) = tq.ComposableQuantizer([OfTorchao()]).quantizers
    assert made.name == "OfTorchao"


def test_a_bridge_is_neither_backend_nor_target() -> None:
    """It is in the listing of plugins, and in neither of the others."""
    (bridge,) = (record for record in registry.installed() if record.is_bridge)
    assert bridge.name == "torchao"
    assert bridge.name not in {record.name for record in (*registry.backends(), *registry.targets())}


@pytest.mark.parametrize(
    "wraps", [{"torchao": "no reference"}, {"two words": "package.module:name"}, "torchao"]
)
def test_a_manifest_that_wraps_nothing_readable_is_refused(wraps: object) -> None:
    """A package is named by its name, and the function by where it is."""
    with pytest.raises(PluginError, match="wraps"):
        Manifest(name="bridge", api=1, summary="a bridge", wraps=wraps)  # type: ignore[arg-type]
