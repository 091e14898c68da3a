"""Lowering targets and what backends give to them, with plugins that the tests make up and put on disk."""

from __future__ import annotations

from types import MappingProxyType

import pytest

import torchquilt as tq
from plugin_sites import Site
from torchquilt.plugins import API, Manifest, registry
from torchquilt.plugins.doctor import diagnose

TARGET = f"""
    from torchquilt.plugins import Manifest, hookimpl

    @hookimpl
    def torchquilt_manifest():
        return Manifest(
            name="device", api={API}, summary="a device", target="device_quilt_plugin_class:Target"
        )
"""
CLASS = """
    class Target:
        def lower(self, program, contributions):
            return "lowered"
"""


def giving(reference: str) -> str:
    """The plugin module of a backend ``acme`` that gives something to the device."""
    return f"""
        from torchquilt.plugins import Manifest, hookimpl

        @hookimpl
        def torchquilt_manifest():
            return Manifest(
                name="acme",
                api={API},
                summary="a backend",
                quantizer="acme_quilt_plugin_class:Quantizer",
                targets=("device",),
                contributions={{"device": "{reference}"}},
            )
    """


@pytest.fixture
def both(site: Site) -> Site:
    """A backend and the target that it gives to."""
    site.plugin("device", source=TARGET, cls=CLASS)
    works = "class Quantizer:\n    def quantization_capabilities(self):\n        import torchquilt\n"
    works += "        return torchquilt.Capabilities()\nGIVEN = 7\n"
    site.plugin("acme", source=giving("acme_quilt_plugin_class:GIVEN"), cls=works)
    return site


def test_targets_and_backends_are_listed_apart(both: Site) -> None:
    """A target is none of the backends, and a backend is no target."""
    assert [plugin.name for plugin in tq.backends()] == ["acme"]
    assert [plugin.name for plugin in tq.targets()] == ["device"]
    assert [plugin.name for plugin in registry.installed()] == ["acme", "device"]


def test_a_plugin_may_be_both(site: Site) -> None:
    """A backend that comes with a runtime of its own is in both lists."""
    source = TARGET.replace("target=", 'quantizer="device_quilt_plugin_class:Target", target=')
    site.plugin("device", source=source, cls=CLASS)
    assert [plugin.name for plugin in (*tq.backends(), *tq.targets())] == ["device", "device"]


def test_a_target_is_made_by_name(both: Site) -> None:
    """Its class is called without arguments."""
    assert registry.target("device").lower(None, {}) == "lowered"


def test_what_a_backend_gives_is_loaded_by_name(both: Site) -> None:
    """And nothing where it says nothing of a target."""
    assert registry.contribution("acme", "device") == 7
    assert registry.contribution("acme", "elsewhere") is None


def test_a_target_is_not_asked_to_quantize(both: Site) -> None:
    """The answer says what it is, and how it is used."""
    with pytest.raises(tq.PluginNotFoundError, match="is a lowering target") as caught:
        tq.quantizer("device")
    assert "torchquilt.lower" in str(caught.value.remedy)


def test_a_backend_is_not_asked_to_lower(both: Site) -> None:
    """The answer says to what it can be lowered."""
    with pytest.raises(tq.PluginNotFoundError, match="is no lowering target") as caught:
        registry.target("acme")
    assert "'device'" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("executorch", "pip install torchquilt-executorch"),
        ("executroch", "pip install torchquilt-executorch"),
        ("nothing_like_it", "torchquilt.targets()"),
    ],
)
def test_a_target_that_is_not_installed_is_answered(site: Site, name: str, remedy: str) -> None:
    """With the pip line where it is published, also for a name that is nearly right."""
    with pytest.raises(tq.PluginNotFoundError) as caught:
        registry.target(name)
    assert remedy in str(caught.value.remedy)


def test_a_target_that_is_not_known_is_no_quantizer(both: Site) -> None:
    """The error speaks of a lowering target, and lists lowering targets alone."""
    with pytest.raises(tq.PluginNotFoundError) as caught:
        registry.target("coreml")
    assert caught.value.problem == "No installed lowering target is called 'coreml'."
    assert "quantizer" not in str(caught.value)
    assert caught.value.expected == "installed are " + ", ".join(one.name for one in registry.targets())


def test_a_target_is_not_offered_to_who_asks_for_a_backend(site: Site) -> None:
    """A pip line that would not help is not given."""
    with pytest.raises(tq.PluginNotFoundError) as caught:
        tq.quantizer("executorch")
    assert caught.value.remedy != "pip install torchquilt-executorch"


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("acme_quilt_lowering:GIVEN", "No module named 'acme_quilt_lowering'"),
        ("acme_quilt_plugin_class:GIVEN", "has no attribute 'GIVEN'"),
    ],
)
def test_what_cannot_be_imported_names_the_backend(site: Site, reference: str, error: str) -> None:
    """It is an error of loading, with the original one as its cause; the backend itself still works."""
    site.plugin("acme", source=giving(reference))
    assert tq.quantizer("acme") is not None
    with pytest.raises(tq.PluginLoadError, match="What the backend 'acme' gives to 'device'") as caught:
        registry.contribution("acme", "device")
    assert error in str(caught.value.got)
    assert caught.value.__cause__ is not None


def test_the_diagnosis_loads_targets_and_contributions(both: Site) -> None:
    """Nothing is found where they load."""
    assert diagnose().findings == ()


def test_the_diagnosis_finds_what_does_not_load(both: Site) -> None:
    """A target whose class is gone, and what a backend gives that is gone."""
    (both.folder / "device_quilt_plugin_class.py").write_text("import missing_library\n")
    (both.folder / "acme_quilt_plugin.py").write_text(
        (both.folder / "acme_quilt_plugin.py").read_text().replace(":GIVEN", ":TAKEN")
    )
    found = [(finding.subject, finding.stage) for finding in diagnose().findings]
    assert found == [("acme", "contribution device"), ("device", "target")]


# --- The manifest -------------------------------------------------------------------------------------------


def test_a_manifest_says_what_the_plugin_is() -> None:
    """One without a quantizer and without a target is refused."""
    with pytest.raises(tq.PluginError, match="does not say what the plugin is"):
        Manifest(name="acme", api=1, summary="nothing")


@pytest.mark.parametrize(
    "contributions",
    [{"Device": "package.module:NAME"}, {"device": "package.module"}, {"device": 7}, "device", ["device"]],
)
def test_contributions_that_say_nothing_are_refused(contributions: object) -> None:
    """The name of a target, and where the contribution is, as text."""
    with pytest.raises(tq.PluginError, match="contributions"):
        Manifest(
            name="acme",
            api=1,
            summary="a backend",
            quantizer="acme:Quantizer",
            contributions=contributions,  # type: ignore[arg-type]
        )


def test_a_manifest_stays_as_it_was_made() -> None:
    """The mapping that it was made from may change; manifests compare and hash by value."""
    given = {"device": "package.module:NAME"}
    made = [
        Manifest(name="acme", api=1, summary="a", quantizer="acme:Quantizer", contributions=given)
        for _ in range(2)
    ]
    given["other"] = "package.module:NAME"
    assert made[0] == made[1]
    assert len(set(made)) == 1
    assert isinstance(made[0].contributions, MappingProxyType)
    assert [*made[0].contributions] == ["device"]
