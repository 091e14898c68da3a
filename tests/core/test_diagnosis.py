"""The diagnosis: every plugin is used as a user would use it, and what goes wrong is told with what to do."""

from __future__ import annotations

import sys

import pytest

from plugin_sites import Site
from torchquilt.plugins import registry
from torchquilt.plugins.doctor import Finding, diagnose

WORKS = """
    from torchquilt import Capabilities

    class Quantizer:
        @classmethod
        def from_preset(cls, name):
            return cls()

        def quantization_capabilities(self):
            return Capabilities()
"""
CANNOT_MAKE_LARGE = WORKS.replace("return cls()", "return {'small': cls()}[name]")


def findings() -> list[tuple[str, str]]:
    """Subject and stage of all that is found."""
    return [(found.subject, found.stage) for found in diagnose().findings]


def only() -> Finding:
    """The one thing that is wrong."""
    (found,) = diagnose().findings
    return found


def test_nothing_is_found_where_all_works(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The diagnosis has the versions, the variables in force, and the listing."""
    site.plugin("acme", cls=WORKS)
    monkeypatch.setenv(registry.ALLOW_VARIABLE, "acme")
    told = diagnose()
    assert told.findings == ()
    assert [backend.name for backend in told.backends] == ["acme"]
    assert told.variables == {registry.ALLOW_VARIABLE: "acme", registry.BLOCK_VARIABLE: None}
    assert told.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torchquilt", "torch", "executorch"} < set(told.versions)


@pytest.mark.parametrize(
    ("source", "stage", "error"),
    [
        ("import missing_library", "import", "No module named 'missing_library'"),
        ("raise SystemExit(3)", "import", "SystemExit: 3"),
        ("", "hook", "does not implement the hook"),
    ],
)
def test_a_plugin_that_cannot_be_listed_is_found(site: Site, source: str, stage: str, error: str) -> None:
    """The stage is that of the listing; the error and what to do are those of asking for it."""
    site.plugin("acme", source=source or "nothing = 0")
    found = only()
    assert (found.subject, found.stage) == ("acme", stage)
    assert error in found.error
    assert found.remedy


@pytest.mark.parametrize(
    ("cls", "stage", "error"),
    [
        pytest.param("import missing_library", "class", "No module named 'missing_library'", id="import"),
        pytest.param("Quantiser = object", "class", "has no attribute 'Quantizer'", id="name"),
        pytest.param(
            "class Quantizer:\n    def __init__(self): raise OSError('no such device')",
            "instance",
            "OSError: no such device",
            id="call",
        ),
    ],
)
def test_a_class_that_cannot_be_had_is_found(site: Site, cls: str, stage: str, error: str) -> None:
    """A plugin that is listed as working is not believed."""
    site.plugin("acme", cls=cls)
    found = only()
    assert (found.subject, found.stage) == ("acme", stage)
    assert error in found.error
    assert "acme-quilt" in str(found.remedy)


def test_each_preset_that_cannot_be_made_is_found(site: Site) -> None:
    """The bare quantizer works, and so does one preset; the other one is named."""
    site.plugin("acme", cls=CANNOT_MAKE_LARGE)
    found = only()
    assert (found.subject, found.stage) == ("acme", "preset large")
    assert "KeyError" in found.error


def test_a_quantizer_that_answers_nothing_is_found(site: Site) -> None:
    """Without the query for capabilities it is of no use, bare or with a preset."""
    site.plugin("acme")
    assert findings() == [("acme", "capabilities"), ("acme", "preset small"), ("acme", "preset large")]


def test_two_plugins_of_one_name_are_a_conflict(site: Site) -> None:
    """It is told once, with both packages; each of the two is looked at by itself."""
    site.plugin("acme", distribution="first-acme", cls=WORKS)
    site.plugin("acme", distribution="second-acme", cls="import missing_library")
    conflict, broken = diagnose().findings
    assert (conflict.subject, conflict.stage) == ("acme", "conflict")
    assert "first-acme 1.0, second-acme 1.0" in conflict.error
    assert "TORCHQUILT_DISABLE_PLUGINS" in str(conflict.remedy)
    assert (broken.stage, "second-acme" in str(broken.remedy)) == ("class", True)


def test_a_plugin_in_trouble_does_not_keep_the_others_from_being_looked_at(site: Site) -> None:
    """Two plugins are broken, each in its way, and both are told."""
    site.plugin("acme", cls="raise SystemExit(1)")
    site.plugin("mill", cls=WORKS)
    site.plugin("zeta", source="import missing_library")
    assert findings() == [("acme", "class"), ("zeta", "import")]


def test_a_disabled_plugin_is_left_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disabled plugin is not loaded, and is no fault."""
    site.plugin("acme", source="import missing_library")
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "acme")
    assert findings() == []


def test_a_name_in_the_environment_that_nobody_has_is_found(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting has no effect, which a listing only warns of."""
    site.plugin("acme", cls=WORKS)
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "acne")
    found = only()
    assert found.subject == "environment"
    assert "did you mean 'acme'" in found.error


def test_torch_that_does_not_import_is_found(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finding has the error of the import."""
    monkeypatch.setitem(sys.modules, "torch", None)
    found = only()
    assert (found.subject, found.stage) == ("torch", "import")
    assert "torch" in found.error
