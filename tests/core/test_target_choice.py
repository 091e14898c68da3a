"""The lowering target of a model where the user names none, with plugins that the tests put on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import torchquilt as tq
from plugin_sites import Site
from torchquilt.lowering import LoweredProgram, load
from torchquilt.lowering.program_facts import Ports
from torchquilt.lowering.target_choice import target_of
from torchquilt.plugins import API


class OwnQuantizer(tq.Quantizer):
    """A quantizer of a user's own, which takes nothing."""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Leave the model as it is."""
        return model


def add_target(site: Site, name: str) -> None:
    """Install a target that can lower and open nothing, and says so."""
    source = f"""
        from torchquilt.backend import Manifest, hookimpl

        @hookimpl
        def torchquilt_manifest():
            return Manifest(
                name="{name}", api={API}, summary="a device", target="{name}_quilt_plugin_class:Target"
            )
    """
    refuses = f"""
        class Target:
            def lower(self, program, contributions):
                raise NotImplementedError("{name} lowers for " + ", ".join(contributions))

            def open(self, buffer, libraries):
                raise NotImplementedError("{name} opens")
    """
    site.plugin(name, source=source, cls=refuses)


def add_backend(site: Site, name: str, *targets: str) -> None:
    """Install a backend that names targets, and contributes to each."""
    source = f"""
        from torchquilt.backend import Manifest, hookimpl

        @hookimpl
        def torchquilt_manifest():
            return Manifest(
                name="{name}",
                api={API},
                summary="a backend",
                quantizer="{name}_quilt_plugin_class:Quantizer",
                targets={targets},
                contributions=dict.fromkeys({targets}, "{name}_quilt_plugin_class:CONTRIBUTION"),
            )
    """
    gives = (
        "from torchquilt.backend import Contribution\nclass Quantizer: ...\nCONTRIBUTION = Contribution()\n"
    )
    site.plugin(name, source=source, cls=gives)


@pytest.fixture
def devices(site: Site) -> Site:
    """Three targets, and backends that share some of them."""
    for name in ("chip", "phone", "watch"):
        add_target(site, name)
    add_backend(site, "narrow", "phone")
    add_backend(site, "wide", "watch", "phone")
    add_backend(site, "elsewhere", "satellite")
    add_backend(site, "nowhere")
    return site


@pytest.mark.parametrize(
    ("backends", "target"),
    [(["narrow"], "phone"), (["wide", "narrow"], "phone"), (["narrow", "wide"], "phone")],
)
def test_the_one_target_that_all_backends_name_is_taken(
    devices: Site, backends: list[str], target: str
) -> None:
    """In whichever order they stand, and whatever else is installed."""
    assert target_of(backends) == target


def test_the_only_installed_target_is_taken_where_no_backend_says_anything(site: Site) -> None:
    """As for a float model that is lowered without backends."""
    add_target(site, "chip")
    assert target_of([]) == "chip"


@pytest.mark.parametrize(("backends", "candidates"), [(["wide"], "phone, watch"), ([], "chip, phone, watch")])
def test_several_targets_are_listed(devices: Site, backends: list[str], candidates: str) -> None:
    """None is guessed; the remedy names the argument."""
    with pytest.raises(tq.LoweringError, match="several installed targets") as caught:
        target_of(backends)
    assert caught.value.expected == f"one of: {candidates}"
    assert caught.value.got == "target=None"
    assert caught.value.remedy == f"name one: lower(..., target={candidates.split(',')[0]!r})"


@pytest.mark.parametrize(
    ("backends", "expected", "remedy"),
    [
        (["elsewhere"], "elsewhere: satellite", "install the plugin that has it"),
        (["narrow", "elsewhere"], "narrow: phone; elsewhere: satellite", "the backends of one target"),
        (["nowhere"], "nowhere: none", "the backends of one target"),
    ],
)
def test_without_a_common_target_each_backend_says_what_it_names(
    devices: Site, backends: list[str], expected: str, remedy: str
) -> None:
    """Beside what is installed."""
    with pytest.raises(tq.LoweringError, match="No installed lowering target") as caught:
        target_of(backends)
    assert caught.value.expected == expected
    assert caught.value.got == "installed: chip, phone, watch"
    assert remedy in str(caught.value.remedy)


def test_a_published_target_comes_with_its_pip_line(site: Site) -> None:
    """The backends name it, and it is not installed."""
    add_backend(site, "acme", "executorch")
    with pytest.raises(tq.LoweringError) as caught:
        target_of(["acme"])
    assert caught.value.remedy == "pip install torchquilt-executorch"


def test_a_model_is_lowered_to_the_target_of_its_backends(devices: Site) -> None:
    """``target`` says otherwise."""
    exported = torch.export.export(nn.Linear(4, 4).eval(), (torch.ones(2, 4),))
    with pytest.raises(NotImplementedError, match="phone lowers for wide, narrow"):
        tq.lower(exported, backends=["wide", "narrow"])
    with pytest.raises(NotImplementedError, match="watch lowers for wide"):
        tq.lower(exported, backends=["wide"], target="watch")


def test_a_quantizer_that_is_no_plugin_names_no_target(site: Site) -> None:
    """The one target that is installed takes what it quantized."""
    add_target(site, "chip")
    exported = torch.export.export(nn.Linear(4, 4).eval(), (torch.ones(2, 4),))
    converted = tq.convert_pt2e(tq.prepare_pt2e(exported, OwnQuantizer()))
    with pytest.raises(NotImplementedError, match="chip lowers for"):
        tq.lower(converted, (torch.ones(2, 4),))


def test_a_program_is_opened_by_the_target_of_its_report(devices: Site, tmp_path: Path) -> None:
    """``target`` says otherwise. Without a report each target is asked, and told where none can read it."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"program")
    with pytest.raises(tq.ProgramError, match="No installed target can read this file") as caught:
        load(path)
    assert caught.value.got == "chip: chip opens; phone: phone opens; watch: watch opens"
    LoweredProgram("watch", (), b"program", Ports((), ()), (), ()).save(path)
    with pytest.raises(NotImplementedError, match="watch opens"):
        load(path)
    with pytest.raises(NotImplementedError, match="chip opens"):
        load(path, target="chip")
