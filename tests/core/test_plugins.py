"""Finding, listing and loading backends, with plugins that the tests make up and really put on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from textwrap import dedent

import attrs
import importlib_metadata
import pytest

import torchquilt as tq
from plugin_sites import Site
from torchquilt.plugins import API, Manifest, PresetInfo, registry
from torchquilt.plugins import validation as examination


def statuses() -> dict[str, str]:
    """The status of each listed backend."""
    return {backend.name: backend.status for backend in tq.backends()}


def only() -> tq.Backend:
    """The record of the one backend that is installed."""
    (backend,) = tq.backends()
    return backend


# --- Listing ------------------------------------------------------------------------------------------------


def test_a_working_plugin_is_listed_with_its_manifest(site: Site) -> None:
    """The record of a plugin that works has its package, its version and what it says of itself."""
    site.plugin("acme")
    assert only() == tq.Backend(
        name="acme",
        distribution="acme-quilt",
        version="1.0",
        status="ok",
        manifest=Manifest(
            name="acme",
            api=API,
            summary="what acme does",
            quantizer="acme_quilt_plugin_class:Quantizer",
            presets=(PresetInfo("small", "few bits"), PresetInfo("large", "many bits")),
            targets=("device",),
        ),
    )


def test_backends_are_listed_by_name(site: Site) -> None:
    """The order of a listing is that of the names, not that of the folders on the disk."""
    for name in ("zeta", "acme", "mill"):
        site.plugin(name)
    assert [backend.name for backend in tq.backends()] == ["acme", "mill", "zeta"]


def test_a_listing_prints_as_a_table(site: Site) -> None:
    """In a REPL the listing is a table: a row for each backend, the reason behind one that does not work."""
    site.plugin("acme")
    site.plugin("mill", source="import missing_library")
    assert repr(tq.backends()).splitlines() == [
        "name  distribution  version  status",
        "acme  acme-quilt    1.0      ok      what acme does",
        "mill  mill-quilt    1.0      broken  import: ModuleNotFoundError: No module named 'missing_library'",
    ]


def test_an_empty_listing_prints_what_could_be_installed(site: Site) -> None:
    """Without any backend the listing is empty and prints the pip lines of those that are published."""
    assert tq.backends() == ()
    assert "pip install torchquilt-xnnpack" in repr(tq.backends())


def test_a_plugin_that_is_installed_later_is_found(site: Site) -> None:
    """Each listing looks anew: what was installed since the last one is there, what was removed is gone."""
    site.plugin("acme")
    assert list(statuses()) == ["acme"]
    stamp = site.folder.stat().st_mtime_ns
    info = site.plugin("mill")
    # As on a file system whose clock is too coarse to tell the two moments apart.
    os.utime(site.folder, ns=(stamp, stamp))
    assert list(statuses()) == ["acme", "mill"]
    shutil.rmtree(info)
    assert list(statuses()) == ["acme"]


def test_a_distribution_that_is_on_the_path_twice_is_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy that comes later on the path is hidden, like its modules, and no duplicate."""
    site.plugin("acme")
    second = Site(tmp_path / "second")
    second.plugin("acme")
    find = importlib_metadata.Distribution.discover
    both = [str(site.folder), str(second.folder)]
    monkeypatch.setattr(importlib_metadata, "distributions", lambda: find(path=both))
    assert only().status == "ok"


@pytest.mark.parametrize(
    ("source", "stage", "says"),
    [
        pytest.param("import missing_library", "import", "missing_library", id="import-fails"),
        pytest.param("raise SystemExit('no licence')", "import", "no licence", id="import-exits"),
        pytest.param("x = 1", "hook", "does not implement the hook torchquilt_manifest", id="no-hook"),
        pytest.param(
            """
            from torchquilt.plugins import hookimpl
            @hookimpl
            def torchquilt_manifset(): ...
            """,
            "hook",
            "torchquilt_manifset",
            id="hook-misspelt",
        ),
        pytest.param(
            """
            from torchquilt.plugins import hookimpl
            @hookimpl
            def torchquilt_manifest(version): ...
            """,
            "hook",
            "version",
            id="hook-wants-an-argument",
        ),
        pytest.param(
            """
            from torchquilt.plugins import hookimpl
            @hookimpl
            def torchquilt_manifest(): raise OSError("no such device")
            """,
            "manifest",
            "no such device",
            id="hook-fails",
        ),
        pytest.param(
            """
            from torchquilt.plugins import hookimpl
            @hookimpl
            def torchquilt_manifest(): return {"name": "mill"}
            """,
            "manifest",
            "{'name': 'mill'}",
            id="no-manifest",
        ),
        pytest.param(
            """
            from torchquilt.plugins import Manifest, hookimpl
            @hookimpl
            def torchquilt_manifest(): return Manifest(name="mull", api=1, summary="s", quantizer="m:C")
            """,
            "manifest",
            "'mull' in the manifest",
            id="another-name",
        ),
        pytest.param(
            """
            from torchquilt.plugins import Manifest, hookimpl
            @hookimpl
            def torchquilt_manifest(): return Manifest(name="mill", api=1, summary="s", quantizer="m:C")
            @hookimpl
            def torchquilt_lowring(): ...
            """,
            "hook",
            "torchquilt_lowring",
            id="second-hook-misspelt",
        ),
    ],
)
def test_a_broken_plugin_is_a_record_beside_the_others(
    site: Site, source: str, stage: str, says: str
) -> None:
    """A plugin in trouble is listed with the stage and the error, and takes no other plugin with it."""
    site.plugin("acme")
    site.plugin("mill", source=source)
    acme, mill = tq.backends()
    assert acme.status == "ok"
    assert (mill.status, mill.stage, mill.manifest) == ("broken", stage, None)
    assert mill.error is not None
    assert says in mill.error
    assert type(mill.exception).__name__ in mill.error


def test_an_entry_point_that_names_no_module_is_a_record(site: Site) -> None:
    """An entry point whose text is no reference to a module is broken, and its package is named."""
    site.install("acme-quilt", "[torchquilt]\nacme = not a module!\n", {})
    assert (only().status, only().distribution) == ("broken", "acme-quilt")
    # importlib-metadata 9 and older notices when it reads the file, newer ones when the module is loaded.
    assert only().stage in {"metadata", "import"}


def test_entry_points_that_cannot_be_read_are_a_record(site: Site) -> None:
    """A file of entry points that does not parse gives a record under the name of the package."""
    site.install("acme-quilt", "[torchquilt]\nacme\n", {})
    assert (only().name, only().status, only().stage) == ("acme_quilt", "broken", "metadata")
    assert isinstance(only().exception, TypeError | ValueError)


def test_a_package_that_lost_its_metadata_is_listed(site: Site) -> None:
    """A backend is listed though the METADATA of its package is gone."""
    (site.plugin("acme") / "METADATA").unlink()
    assert (only().name, only().distribution, only().version) == ("acme", "unknown", "unknown")


def test_a_damaged_package_of_somebody_else_is_passed_over(site: Site) -> None:
    """Entry points that are not even text, in a package that is none of ours, do not disturb a listing."""
    site.plugin("acme")
    info = site.install("other", "", {})
    (info / "entry_points.txt").write_bytes(b"\xff\xfe\x00[")
    assert statuses() == {"acme": "ok"}


@pytest.mark.parametrize("api", [API + 1, API + 41])
def test_another_plugin_interface_is_incompatible(site: Site, api: int) -> None:
    """A manifest with another API number makes the record incompatible and names both numbers."""
    site.plugin("acme", api=api)
    assert (only().status, only().stage) == ("incompatible", "api")
    assert only().error == f"speaks plugin interface {api}, this torchquilt speaks {API}"


def test_a_hook_of_a_later_interface_is_incompatible_and_not_broken(site: Site) -> None:
    """A plugin of a later interface may have hooks that this core does not know: the number is the reason."""
    site.plugin(
        "acme",
        source=f"""
            from torchquilt.plugins import Manifest, hookimpl
            @hookimpl
            def torchquilt_manifest():
                return Manifest(name="acme", api={API + 1}, summary="s", quantizer="m:C")
            @hookimpl
            def torchquilt_hook_of_the_future(): ...
            """,
    )
    assert only().status == "incompatible"


def test_records_compare_without_their_exceptions(site: Site) -> None:
    """Two listings of the same broken plugin are equal, though each has an exception of its own."""
    site.plugin("acme", source="import missing_library")
    first, second = tq.backends(), tq.backends()
    assert first[0].exception is not second[0].exception
    assert first == second


# --- The environment variables ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "block", "usable"),
    [
        pytest.param(None, None, {"acme", "mill_two"}, id="neither"),
        pytest.param("acme", None, {"acme"}, id="allow"),
        pytest.param("", None, set(), id="allow-none"),
        pytest.param(" acme , mill_two ", None, {"acme", "mill_two"}, id="allow-with-spaces"),
        pytest.param("mill-two", None, {"mill_two"}, id="hyphen-for-underscore"),
        pytest.param("Acme-Quilt", None, {"acme"}, id="by-distribution"),
        pytest.param("acme.quilt", None, {"acme"}, id="dot-for-hyphen"),
        pytest.param(None, "acme", {"mill_two"}, id="block"),
        pytest.param(None, "", {"acme", "mill_two"}, id="block-none"),
        pytest.param(None, "mill_two_quilt", {"acme"}, id="block-by-distribution"),
        pytest.param("acme,mill_two", "acme", {"mill_two"}, id="block-wins"),
    ],
)
def test_the_environment_allows_and_blocks(
    site: Site, monkeypatch: pytest.MonkeyPatch, allow: str | None, block: str | None, usable: set[str]
) -> None:
    """The allow list leaves only its names (none when empty), the block list takes its names away."""
    site.plugin("acme")
    site.plugin("mill_two", distribution="mill-two-quilt")
    for variable, value in ((registry.ALLOW_VARIABLE, allow), (registry.BLOCK_VARIABLE, block)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    expected = {name: "ok" if name in usable else "disabled" for name in ("acme", "mill_two")}
    assert statuses() == expected


def test_a_disabled_plugin_is_not_imported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of a disabled plugin runs: that may be why it was disabled."""
    site.plugin("acme")
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "acme")
    assert only().manifest is None
    assert "acme_quilt_plugin" not in sys.modules


@pytest.mark.parametrize("variable", [registry.ALLOW_VARIABLE, registry.BLOCK_VARIABLE])
def test_a_name_in_the_environment_that_has_no_effect_is_warned_of(
    site: Site, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A name that no installed plugin has is warned of, with the nearest one, and the listing goes on."""
    site.plugin("acme")
    monkeypatch.setenv(variable, "acne")
    with pytest.warns(UserWarning, match=f"{variable} names 'acne'.*did you mean 'acme'") as caught:
        tq.backends()
    assert caught[0].filename == __file__


def test_names_that_are_installed_are_not_warned_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists in which every name is that of an installed plugin or its package pass without a warning."""
    site.plugin("acme")
    monkeypatch.setenv(registry.ALLOW_VARIABLE, "acme")
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "acme-quilt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert statuses() == {"acme": "disabled"}


# --- Asking for one -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["acme", "ACME"])
@pytest.mark.parametrize("preset", [None, "small"])
def test_a_quantizer_is_made_by_name(site: Site, name: str, preset: str | None) -> None:
    """A quantizer comes from its class: called without a preset, through ``from_preset`` with one."""
    site.plugin("acme")
    made = tq.quantizer(name, preset=preset)
    assert type(made).__module__ == "acme_quilt_plugin_class"
    assert made.preset == preset


def test_a_hyphen_counts_as_an_underscore(site: Site) -> None:
    """The name of a backend may be written with hyphens, like that of its package."""
    site.plugin("mill_two")
    assert type(tq.quantizer("mill-two")).__module__ == "mill_two_quilt_plugin_class"


def test_only_the_plugin_that_is_asked_for_is_imported(site: Site) -> None:
    """Asking for one backend imports nothing of another."""
    site.plugin("acme")
    site.plugin("mill")
    tq.quantizer("acme")
    assert "mill_quilt_plugin" not in sys.modules


def test_an_unknown_preset_is_answered_with_those_there_are(site: Site) -> None:
    """The error lists the presets and the nearest, and the class was not imported to find out."""
    site.plugin("acme")
    with pytest.raises(tq.UnsupportedConfigError) as caught:
        tq.quantizer("acme", preset="smal")
    assert caught.value.expected == "one of: small, large"
    assert caught.value.remedy == "did you mean 'small'?"
    assert "acme_quilt_plugin_class" not in sys.modules


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        pytest.param("acne", "did you mean 'acme'?", id="misspelt"),
        pytest.param("acme-quilt", "did you mean 'acme'?", id="name-of-the-package"),
        pytest.param("xnnpack", "pip install torchquilt-xnnpack", id="published"),
        pytest.param("torchquilt-xnnpack", "pip install torchquilt-xnnpack", id="published-package"),
        pytest.param(
            "executorch-embedding", "pip install torchquilt-executorch-embedding", id="published-with-hyphen"
        ),
        pytest.param(
            "xnpack",
            "did you mean 'xnnpack'? It is not installed: pip install torchquilt-xnnpack",
            id="published-misspelt",
        ),
        pytest.param(
            "quux",
            "install the plugin that has it; torchquilt.backends() lists what there is",
            id="nothing-near",
        ),
    ],
)
def test_an_unknown_name_is_answered_with_what_would_work(site: Site, asked: str, remedy: str) -> None:
    """The remedy is the nearest installed name, or the pip line of a published plugin."""
    site.plugin("acme")
    with pytest.raises(tq.PluginNotFoundError) as caught:
        tq.quantizer(asked)
    assert caught.value.remedy == remedy
    assert caught.value.expected == "installed are acme"


def test_the_package_of_a_published_backend_leads_to_its_name(site: Site) -> None:
    """Once it is installed, asking for it by the name of its package is not answered with the pip line."""
    site.plugin("xnnpack", distribution="torchquilt-xnnpack")
    with pytest.raises(tq.PluginNotFoundError) as caught:
        tq.quantizer("torchquilt-xnnpack")
    assert caught.value.remedy == "did you mean 'xnnpack'?"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        (registry.ALLOW_VARIABLE, "", "by TORCHQUILT_PLUGINS, which does not name it"),
        (registry.BLOCK_VARIABLE, "acme", "by TORCHQUILT_DISABLE_PLUGINS, which names it"),
    ],
)
def test_asking_for_a_disabled_backend_names_the_variable(
    site: Site, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    """The error says which environment variable disables it, and what that is set to."""
    site.plugin("acme")
    monkeypatch.setenv(variable, value)
    with pytest.raises(tq.PluginLoadError) as caught:
        tq.quantizer("acme")
    assert says in caught.value.problem
    assert caught.value.got == f"{variable}={value!r}"


def test_asking_for_a_broken_backend_raises_from_the_original_error(site: Site) -> None:
    """The error of a plugin that does not import has the original exception as its cause."""
    site.plugin("acme", source="import missing_library")
    with pytest.raises(tq.PluginLoadError) as caught:
        tq.quantizer("acme")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert caught.value.__cause__.name == "missing_library"
    assert "'import'" in str(caught.value.got)


@pytest.mark.parametrize(
    ("core_speaks", "upgrade"),
    [
        pytest.param(1, "pip install --upgrade torchquilt", id="core-is-older"),
        pytest.param(3, "pip install --upgrade acme-quilt", id="plugin-is-older"),
    ],
)
def test_asking_for_another_interface_says_which_side_to_upgrade(
    site: Site, monkeypatch: pytest.MonkeyPatch, core_speaks: int, upgrade: str
) -> None:
    """The error has both numbers, and the pip line for the side that is behind."""
    site.plugin("acme", api=2)
    monkeypatch.setattr(examination, "API", core_speaks)
    with pytest.raises(tq.PluginLoadError) as caught:
        tq.quantizer("acme")
    assert caught.value.remedy == upgrade
    assert f"interface {core_speaks}" in str(caught.value.expected)
    assert "interface 2" in str(caught.value.got)


@pytest.mark.parametrize(
    ("cls", "cause"),
    [
        pytest.param("import missing_library", ModuleNotFoundError, id="import-fails"),
        pytest.param("raise SystemExit(3)", SystemExit, id="import-exits"),
        pytest.param("Quantiser = object", AttributeError, id="no-such-class"),
        pytest.param("Quantizer = 'a text'", type(None), id="no-class"),
    ],
)
def test_a_class_that_cannot_be_had_is_a_load_error(site: Site, cls: str, cause: type) -> None:
    """The plugin is listed as working; asking for its class raises, from the original error if any."""
    site.plugin("acme", cls=cls)
    assert only().status == "ok"
    with pytest.raises(tq.PluginLoadError) as caught:
        tq.quantizer("acme")
    assert isinstance(caught.value.__cause__, cause)
    assert "acme_quilt_plugin_class:Quantizer" in str(caught.value.expected)


def test_presets_that_the_class_cannot_make_are_a_load_error(site: Site) -> None:
    """A class without ``from_preset`` behind a manifest with presets is an error that says so."""
    site.plugin("acme", cls="class Quantizer: ...")
    with pytest.raises(tq.PluginLoadError) as caught:
        tq.quantizer("acme", preset="small")
    assert "from_preset" in str(caught.value.expected)


def test_an_error_of_the_class_itself_comes_through(site: Site) -> None:
    """An error of making the class belongs to the plugin, and reaches the user as it is."""
    site.plugin("acme", cls="class Quantizer:\n    def __init__(self): raise OSError('no such device')")
    with pytest.raises(OSError, match="no such device"):
        tq.quantizer("acme")


# --- Two plugins of one name --------------------------------------------------------------------------------


@pytest.fixture
def twins(site: Site) -> Site:
    """Two packages that both have a backend ``acme``, and one beside them that is alone with its name."""
    site.plugin("acme", distribution="first-acme")
    site.plugin("acme", distribution="second-acme")
    site.plugin("mill")
    return site


def test_two_backends_of_one_name_are_both_listed_as_duplicates(twins: Site) -> None:
    """Both are listed, each with its package, and a third plugin is not touched by it."""
    assert [(b.name, b.distribution, b.status) for b in tq.backends()] == [
        ("acme", "first-acme", "duplicate"),
        ("acme", "second-acme", "duplicate"),
        ("mill", "mill-quilt", "ok"),
    ]


def test_asking_for_a_name_that_two_have_is_an_error(twins: Site) -> None:
    """The error lists the packages; the other backends are still there to be used."""
    with pytest.raises(tq.PluginConflictError) as caught:
        tq.quantizer("acme")
    assert caught.value.got == "first-acme 1.0, second-acme 1.0"
    assert type(tq.quantizer("mill")).__module__ == "mill_quilt_plugin_class"


@pytest.mark.parametrize("distribution", ["first-acme", "second_acme"])
def test_the_user_picks_one_of_two_by_distribution(twins: Site, distribution: str) -> None:
    """With ``distribution=`` the quantizer comes from that package."""
    made = tq.quantizer("acme", distribution=distribution)
    assert type(made).__module__ == f"{distribution.replace('-', '_')}_plugin_class"


def test_the_environment_picks_one_of_two(twins: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the package of one is blocked, the other has the name to itself."""
    monkeypatch.setenv(registry.BLOCK_VARIABLE, "first-acme")
    assert [b.status for b in tq.backends()] == ["disabled", "ok", "ok"]
    assert type(tq.quantizer("acme")).__module__ == "second_acme_plugin_class"


def test_a_distribution_without_that_backend_is_an_error(twins: Site) -> None:
    """Picking a package that has no backend of the name lists those that have."""
    with pytest.raises(tq.PluginNotFoundError) as caught:
        tq.quantizer("acme", distribution="mill-quilt")
    assert caught.value.expected == "one of: first-acme, second-acme"


def test_a_broken_twin_still_takes_part_in_the_conflict(site: Site) -> None:
    """Two backends of one name are a conflict, though only one of them works."""
    site.plugin("acme", distribution="first-acme")
    site.plugin("acme", distribution="second-acme", source="import missing_library")
    assert [b.status for b in tq.backends()] == ["duplicate", "broken"]
    with pytest.raises(tq.PluginConflictError):
        tq.quantizer("acme")


# --- The manifest -------------------------------------------------------------------------------------------

GOOD = {"name": "acme", "api": 1, "summary": "what it does", "quantizer": "acme.quantizer:Acme"}


@pytest.mark.parametrize(
    ("field", "value", "got"),
    [
        ("name", "Acme", "'Acme'"),
        ("name", "acme-two", "'acme-two'"),
        ("name", "", "''"),
        ("name", "2acme", "'2acme'"),
        ("name", None, "None"),
        ("api", 0, "0"),
        ("api", "1", "'1'"),
        ("api", True, "True"),
        ("summary", " ", "' '"),
        ("summary", "two\nlines", "'two\\nlines'"),
        ("quantizer", "acme.quantizer", "'acme.quantizer'"),
        ("quantizer", "acme.quantizer:", "'acme.quantizer:'"),
        ("quantizer", "acme quantizer:Acme", "'acme quantizer:Acme'"),
        ("quantizer", object, "<class 'object'>"),
        ("presets", ("small",), "'small'"),
        ("presets", "small", "'small'"),
        ("presets", (PresetInfo("small", "one"), PresetInfo("small", "two")), "small"),
        ("targets", "executorch", "'executorch'"),
        ("targets", (1,), "1"),
        ("targets", 7, "7"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(field: str, value: object, got: str) -> None:
    """A wrong field is refused when the manifest is made, with an error that shows what it got."""
    with pytest.raises(tq.PluginError) as caught:
        Manifest(**{**GOOD, field: value})
    assert caught.value.expected
    assert caught.value.remedy
    assert caught.value.got == got


def test_a_manifest_is_a_value() -> None:
    """Manifests of equal fields are equal and hash alike, also when one was given a list, and are frozen."""
    presets = [PresetInfo("small", "one")]
    manifest = Manifest(**GOOD, presets=presets)
    assert manifest == Manifest(**GOOD, presets=tuple(presets))
    assert hash(manifest) == hash(Manifest(**GOOD, presets=tuple(presets)))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        manifest.api = 2  # type: ignore[misc]


# --- Without torch ------------------------------------------------------------------------------------------


def run_python(code: str, *path: Path) -> str:
    """Run code in a fresh interpreter that sees the same packages, and ``path`` before them."""
    found = os.pathsep.join(map(str, [*path, *filter(None, sys.path)]))
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        env={**os.environ, "PYTHONPATH": found},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_torchquilt_loads_no_dependency() -> None:
    """``import torchquilt`` loads neither torch nor pluggy nor attrs: it costs next to nothing."""
    code = "import sys, torchquilt; print(*sorted({'torch', 'pluggy', 'attrs'} & set(sys.modules)))"
    assert run_python(code) == ""


def test_listing_and_its_errors_load_no_torch(site: Site) -> None:
    """A listing, an unknown name and an unknown preset are answered without importing torch."""
    site.plugin("acme")
    code = """
        import sys
        import torchquilt as tq
        assert "acme" in [b.name for b in tq.backends()]
        for request in (("acne",), ("acme", "smal")):
            try:
                tq.quantizer(*request)
            except tq.TorchquiltError as error:
                print(error.remedy)
        print("torch" in sys.modules)
    """
    assert run_python(code, site.folder).splitlines() == [
        "did you mean 'acme'?",
        "did you mean 'small'?",
        "False",
    ]
