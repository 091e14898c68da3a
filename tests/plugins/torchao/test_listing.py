"""The listing of foreign quantizers: what the wheels contain, and what is missing to use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import torchquilt as tq
from torchquilt.errors import PluginError, PluginNotFoundError
from torchquilt_torchao.plugin import torchquilt_manifest

HEAVY = ("torch", "torchao", "executorch", "nncf", "coremltools")


def test_a_listing_names_the_quantizers_of_the_wheels_and_imports_nothing() -> None:
    """The vendors are there with the version of their package; no package of theirs is loaded for it."""
    code = f"""
import json, sys
import torchquilt as tq
found = tq.backends()
names = {{each.name: each.status for each in found.foreign}}
print(json.dumps([names, str(found), [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names, text, loaded = json.loads(done.stdout)
    assert loaded == []
    vendors = (
        "arm_tosa arm_ethosu arm_vgf cortex_m openvino_nncf vulkan qualcomm samsung cadence nxp mediatek"
    )
    assert set(names) >= {*vendors.split(), "coreml", "x86_inductor_torchao", "xpu_inductor_torchao"}
    assert set(names.values()) <= {"ok", "quantizes", "missing"}
    own, others = text.split("quantizers of other packages")
    assert "xnnpack " in own
    assert "arm_ethosu" not in own
    assert "arm_ethosu" in others


@pytest.mark.long
def test_the_status_is_what_importing_shows() -> None:
    """The class of each that is said to quantize here is there; the module of each other one is not."""
    for each in tq.backends().foreign:
        module, _, name = each.quantizer.partition(":")
        if each.status == "missing":
            with pytest.raises((ImportError, RuntimeError)):
                import_module(module)
        else:
            assert isinstance(getattr(import_module(module), name), type)


def test_what_is_missing_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK that a variable names is missing only to lower; without the package all is missing."""
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    found = {each.name: each for each in tq.backends().foreign}
    assert found["qualcomm"].status == "quantizes"
    assert "QNN_SDK_ROOT" in found["qualcomm"].remark
    monkeypatch.setenv("QNN_SDK_ROOT", "/somewhere")
    found = {each.name: each for each in tq.backends().foreign}
    assert (found["qualcomm"].status, found["qualcomm"].remark) == ("ok", found["qualcomm"].summary)


def test_with_tools_in_the_path_they_are_found(tmp_path: Path) -> None:
    """A module within a package is looked for on the disk; nothing of either is run."""
    for module in ("tosa_serializer/__init__.py", "ethosu/vela/__init__.py"):
        (tmp_path / module).parent.mkdir(parents=True)
        (tmp_path / module).write_text("raise RuntimeError('this was imported')")
    code = (
        "import torchquilt as tq; print([f.status for f in tq.backends().foreign if f.name == 'arm_ethosu'])"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['ok']"


def test_asking_for_one_by_name_says_how_it_is_made() -> None:
    """The error has the import line, and what is missing."""
    with pytest.raises(PluginNotFoundError, match="quantizer of the package executorch") as caught:
        tq.quantizer("arm-ethosu")
    assert "from executorch.backends.arm.quantizer.arm_quantizer import EthosUQuantizer" in str(caught.value)


def test_no_foreign_quantizer_has_the_name_of_a_plugin() -> None:
    """A name leads to one thing."""
    ours = {each.name for each in (*tq.backends(), *tq.targets())}
    assert not ours & {info.name for info in torchquilt_manifest().foreign}


def test_the_command_line_lists_them_apart() -> None:
    """The table of plugins comes first; JSON has a list of its own, with each field."""
    told = subprocess.run(
        [sys.executable, "-m", "torchquilt", "plugins", "list", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    listed = json.loads(told.stdout)
    assert [each["name"] for each in listed["foreign"]] == [each.name for each in tq.backends().foreign]
    assert {"status", "missing", "version", "quantizer"} <= listed["foreign"][0].keys()
    assert not {each["name"] for each in listed["backends"]} & {each["name"] for each in listed["foreign"]}


def test_a_requirement_is_found_in_one_way() -> None:
    """It has a module or a variable, since what has neither would always be missing."""
    from torchquilt.backend import Requirement

    for ways in ({}, {"module": "a", "variable": "B"}):
        with pytest.raises(PluginError, match="by what it is found"):
            Requirement("it", "get it", **ways)


def test_foreign_quantizers_of_a_manifest_have_names_of_their_own() -> None:
    """Two of one name, or what is none, are refused."""
    from torchquilt.backend import ForeignInfo, Manifest

    one = ForeignInfo(name="one", summary="it", distribution="package", quantizer="package.module:Class")
    for foreign in ((one, one), ("one",)):
        with pytest.raises(PluginError, match="foreign quantizers"):
            Manifest(name="bridge", api=1, summary="it", wraps={"package": "a:b"}, foreign=foreign)  # type: ignore[arg-type]
