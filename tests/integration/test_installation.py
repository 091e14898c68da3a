"""The wheels as users get them, installed one by one into fresh environments.

Nothing here sees the source tree. The dependencies that a wheel declares are linked in from where the tests
run, and no others, so that one that is used and not declared shows. Torch is left out unless a test asks for
it: that a listing works without it is then no matter of trust.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from textwrap import dedent

import attrs
import importlib_metadata
import pytest
from packaging.requirements import Requirement

from projects import version

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {
    "core": ROOT / "core",
    "xnnpack": ROOT / "plugins/xnnpack",
    "embedding": ROOT / "plugins/executorch_embedding",
    "executorch": ROOT / "plugins/executorch",
    "openvino": ROOT / "plugins/openvino",
    "torchao": ROOT / "plugins/torchao",
}

LIST = """
    import torchquilt as tq
    for b in tq.backends():
        print(b.name, b.distribution, b.version, b.status)
"""
#: The environment variables of the tests, without those that choose plugins or show the source tree.
BARE = {
    name: value for name, value in os.environ.items() if not name.startswith(("TORCHQUILT", "PYTHONPATH"))
}
VERSION = version()
XNNPACK = f"xnnpack torchquilt-xnnpack {VERSION} ok"
EMBEDDING = f"executorch_embedding torchquilt-executorch-embedding {VERSION} ok"
BROKEN = "acme acme-quilt 2.0 broken"


def run(*command: object, env: dict[str, str] | None = None) -> str:
    """Run a command that has to succeed, and return what it printed."""
    done = subprocess.run(
        [str(part) for part in command], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


def build_wheel(project: Path, folder: Path) -> Path:
    """Build a wheel with the build tools that are installed, into a folder of its own."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project)
    (wheel,) = folder.glob("*.whl")
    return wheel


def needed_by(
    distribution: importlib_metadata.Distribution, *, without: set[str], extra: str = ""
) -> set[str]:
    """The names of all distributions that one needs, directly or not, apart from some and what those need."""
    needed: set[str] = set()
    waiting = [distribution]
    while waiting:
        current = waiting.pop()
        for line in current.requires or ():
            requirement = Requirement(line)
            about = {"extra": extra if current is distribution else ""}
            wanted = requirement.marker is None or requirement.marker.evaluate(about)
            if wanted and requirement.name not in needed | without:
                needed.add(requirement.name)
                waiting.append(importlib_metadata.distribution(requirement.name))
    return needed


@attrs.frozen
class Environment:
    """A virtual environment with no packages but those that a test puts in."""

    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin/python"

    @property
    def site(self) -> Path:
        """The folder that its packages are in."""
        (found,) = self.folder.glob("lib/python3*/site-packages")
        return found

    def pip(self, *arguments: object) -> None:
        """Run the pip of the tests for this environment, which has none."""
        run(sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments)

    def install(self, wheel: Path) -> None:
        """Install a wheel and nothing else."""
        self.pip("install", "--no-index", "--no-deps", wheel)

    def link_needs_of_core(self, *, without: set[str], extra: str = "") -> None:
        """Link in what the installed core, or an extra of it, declares to need, from where the tests run."""
        (core,) = importlib_metadata.distributions(name="torchquilt", path=[str(self.site)])
        for name in needed_by(core, without=without, extra=extra):
            self.link(importlib_metadata.distribution(name))

    def link(self, distribution: importlib_metadata.Distribution) -> None:
        """Let the environment see what one installed distribution has, and nothing else."""
        tops: Iterable[str] = {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (self.site / top).exists():
                (self.site / top).symlink_to(Path(str(distribution.locate_file(top))))

    def run(self, code: str) -> list[str]:
        """Run code in this environment and return the lines that it prints."""
        # Isolated: neither PYTHONPATH nor the working directory may show it the source tree.
        return run(self.python, "-I", "-c", dedent(code), env=BARE).splitlines()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of this repository."""
    return {name: build_wheel(path, tmp_path_factory.mktemp(name)) for name, path in PROJECTS.items()}


@pytest.fixture(scope="module")
def broken_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin of a third party that needs a library that is not installed."""
    project = tmp_path_factory.mktemp("acme")
    (project / "acme_quilt.py").write_text("import library_that_is_not_there\n")
    (project / "pyproject.toml").write_text(
        dedent("""
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"

            [project]
            name = "acme-quilt"
            version = "2.0"

            [project.entry-points.torchquilt]
            acme = "acme_quilt"
        """)
    )
    return build_wheel(project, tmp_path_factory.mktemp("acme_wheel"))


@pytest.fixture
def environment(tmp_path: Path, wheels: dict[str, Path]) -> Environment:
    """A fresh environment with the core and the little that it needs besides torch."""
    made = Environment(tmp_path / "env")
    run(sys.executable, "-m", "venv", "--without-pip", made.folder)
    made.install(wheels["core"])
    made.link_needs_of_core(without={"torch"})
    return made


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_has_its_package_and_says_that_it_is_typed(wheels: dict[str, Path], name: str) -> None:
    """A wheel holds the files of the source folder, ``py.typed`` among them, and nothing besides."""
    source = PROJECTS[name] / "src"
    files = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheels[name]) as wheel:
        packed = {file for file in wheel.namelist() if ".dist-info/" not in file}
    assert packed == files
    assert any(file.endswith("/py.typed") for file in packed)


def test_the_core_alone_has_no_backends(environment: Environment) -> None:
    """Without a plugin the listing is empty, in an environment that has no torch at all."""
    code = """
        import importlib.util
        import torchquilt as tq
        print(importlib.util.find_spec("torch"), len(tq.backends()), tq.__version__)
    """
    assert environment.run(code) == [f"None 0 {VERSION}"]


def test_the_core_alone_answers_with_the_pip_line(environment: Environment) -> None:
    """A backend that is published and not installed is answered with how to install it."""
    code = """
        import torchquilt as tq
        try:
            tq.quantizer("xnnpack", preset="dynamic_int8_per_channel")
        except tq.PluginNotFoundError as error:
            print(error.remedy)
    """
    assert environment.run(code) == ["pip install torchquilt-xnnpack"]


def test_plugins_are_listed_as_they_are_installed(environment: Environment, wheels: dict[str, Path]) -> None:
    """Each plugin is there once its wheel is installed, without anything else being told of it."""
    environment.install(wheels["xnnpack"])
    assert environment.run(LIST) == [XNNPACK]
    environment.install(wheels["embedding"])
    assert environment.run(LIST) == [EMBEDDING, XNNPACK]


def test_a_broken_plugin_is_listed_beside_the_others(
    environment: Environment, wheels: dict[str, Path], broken_wheel: Path
) -> None:
    """A plugin that does not import is a record; asking for it raises from its error; the others stay."""
    environment.install(wheels["xnnpack"])
    environment.install(broken_wheel)
    code = """
        try:
            tq.quantizer("acme")
        except tq.PluginLoadError as error:
            print(repr(error.__cause__))
    """
    assert environment.run(dedent(LIST) + dedent(code)) == [
        BROKEN,
        XNNPACK,
        """ModuleNotFoundError("No module named 'library_that_is_not_there'")""",
    ]


def test_an_uninstalled_plugin_is_gone(
    environment: Environment, wheels: dict[str, Path], broken_wheel: Path
) -> None:
    """Uninstalling takes a plugin from the listing and leaves the others in it."""
    for wheel in (wheels["xnnpack"], wheels["embedding"], broken_wheel):
        environment.install(wheel)
    assert environment.run(LIST) == [BROKEN, EMBEDDING, XNNPACK]
    environment.pip("uninstall", "--yes", "acme-quilt")
    assert environment.run(LIST) == [EMBEDDING, XNNPACK]
    environment.pip("uninstall", "--yes", "torchquilt-xnnpack")
    assert environment.run(LIST) == [EMBEDDING]


def test_the_command_comes_with_the_extra(environment: Environment, wheels: dict[str, Path]) -> None:
    """Without the extra it says how to get that; with it, it lists plugins, without torch."""
    environment.install(wheels["xnnpack"])
    command = environment.folder / "bin/torchquilt"
    bare = subprocess.run([command, "plugins", "list"], env=BARE, capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stdout) == (4, "")
    assert bare.stderr == ("The command torchquilt needs click and rich: pip install 'torchquilt[cli]'\n")
    environment.link_needs_of_core(without={"torch"}, extra="cli")
    (row,) = json.loads(run(command, "plugins", "list", "--json", env=BARE))["backends"]
    assert f"{row['name']} {row['distribution']} {row['version']} {row['status']}" == XNNPACK
    assert run(environment.python, "-I", "-m", "torchquilt", "--version", env=BARE) == f"torchquilt {VERSION}"


def test_a_lowering_target_is_listed_apart(environment: Environment, wheels: dict[str, Path]) -> None:
    """It is no backend; asked to quantize it says what it is, and before it is there, how to install it."""
    code = """
        import torchquilt as tq
        def ask(name):
            from torchquilt.plugins import registry
            try:
                registry.target(name)
            except tq.PluginNotFoundError as error:
                print(error.remedy)
        ask("executorch")
    """
    assert environment.run(code) == ["pip install torchquilt-executorch"]
    environment.install(wheels["executorch"])
    code = """
        import torchquilt as tq
        print(len(tq.backends()), *(f"{b.name} {b.status}" for b in tq.targets()))
        try:
            tq.quantizer("executorch")
        except tq.PluginNotFoundError as error:
            print(error.problem)
    """
    assert environment.run(code) == [
        "0 executorch ok",
        "The plugin 'executorch' is a lowering target and has no quantizer.",
    ]


def test_without_executorch_lowering_says_how_to_install_it(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    """The plugin can be there without what it needs (``pip install --no-deps``); then that is the answer."""
    environment.install(wheels["executorch"])
    environment.link_needs_of_core(without=set())
    code = """
        import torch
        import torchquilt as tq
        program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
        try:
            tq.lower(program, backends=[])
        except tq.LoweringError as error:
            print(error.remedy)
    """
    assert environment.run(code) == ["pip install 'executorch>=1.5.1'"]


def test_quantizers_are_made_from_what_the_wheels_declare(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    """With the declared dependencies and no others, every preset of both plugins makes its quantizer."""
    environment.install(wheels["xnnpack"])
    environment.install(wheels["embedding"])
    environment.link_needs_of_core(without=set())
    code = """
        import torchquilt as tq
        for backend in tq.backends():
            for preset in backend.manifest.preset_names:
                print(preset, type(tq.quantizer(backend.name, preset=preset)).__name__)
    """
    made = environment.run(code)
    assert set(made) >= {
        "byte_per_row ExecuTorchEmbeddingQuantizer",
        "int4_group32 ExecuTorchEmbeddingQuantizer",
        "static_int8_per_channel XNNPACKQuantizer",
        "dynamic_int8_weight_int4_group32 XNNPACKQuantizer",
    }
    assert {line.split()[1] for line in made} == {"ExecuTorchEmbeddingQuantizer", "XNNPACKQuantizer"}


def test_openvino_needs_no_other_runtime(environment: Environment, wheels: dict[str, Path]) -> None:
    """Its wheel, with OpenVINO and nothing of ExecuTorch, quantizes, lowers and runs; without, it says so."""
    environment.install(wheels["openvino"])
    environment.link_needs_of_core(without=set())
    code = """
        import importlib.util
        import torch
        import torchquilt as tq
        model, inputs = torch.nn.Linear(4, 4).eval(), (torch.ones(1, 4),)
        quantizer = tq.quantizer("openvino", preset="static_int8")
        prepared = tq.prepare_pt2e(torch.export.export(model, inputs), quantizer)
        quantized = tq.convert_pt2e(tq.calibrate(prepared, [inputs]))
        try:
            program = tq.lower(quantized, inputs, verify=True)
            print(program.target, program.operations[0].arithmetic, importlib.util.find_spec("executorch"))
        except tq.LoweringError as error:
            print(error.remedy)
    """
    assert environment.run(code) == ["pip install 'openvino>=2026.4'"]
    for name in ("openvino", "numpy"):
        environment.link(importlib_metadata.distribution(name))
    assert environment.run(code) == ["openvino integer None"]


def test_the_bridge_needs_torchao_and_no_runtime(environment: Environment, wheels: dict[str, Path]) -> None:
    """Its wheel, with torchao and nothing of ExecuTorch, runs a quantizer of torchao; without, it says so."""
    environment.install(wheels["torchao"])
    environment.link_needs_of_core(without=set())
    code = """
        import importlib.util
        import torch
        import torchquilt as tq
        import torchquilt_torchao
        print([record.name for record in tq.backends()], importlib.util.find_spec("executorch"))
        try:
            torchquilt_torchao.foreign
        except tq.PluginLoadError as error:
            print(error.remedy)
        else:
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as inductor
            quantizer = inductor.X86InductorQuantizer()
            quantizer.set_global(inductor.get_default_x86_inductor_quantization_config())
            model, inputs = torch.nn.Linear(4, 4).eval(), (torch.ones(1, 4),)
            prepared = tq.prepare_pt2e(torch.export.export(model, inputs), quantizer)
            quantized = tq.convert_pt2e(tq.calibrate(prepared, [inputs]))
            print([row.quantizer for row in tq.ledger_of(quantized).rows])
    """
    assert environment.run(code) == ["[] None", "pip install torchao"]
    environment.link(importlib_metadata.distribution("torchao"))
    assert environment.run(code) == ["[] None", "['X86InductorQuantizer']"]


def test_the_bridge_runs_what_executorchs_wheel_contains(
    environment: Environment, wheels: dict[str, Path]
) -> None:
    """With ExecuTorch and what that declares: its XNNPACK quantizer is listed, and what it quantizes runs."""
    environment.install(wheels["torchao"])
    environment.link_needs_of_core(without=set())
    executorch = importlib_metadata.distribution("executorch")
    for distribution in (
        executorch,
        *map(importlib_metadata.distribution, needed_by(executorch, without=set())),
    ):
        environment.link(distribution)
    code = """
        import torch
        import torchquilt as tq
        listed = {each.name: each for each in tq.backends().foreign}
        for name in ("xnnpack_executorch", "nxp"):
            print(name, listed[name].version, listed[name].status)

        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
        from executorch.exir import to_edge_transform_and_lower
        from executorch.runtime import Runtime
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
        inputs = (torch.randn(1, 3, 8, 8),)
        quantizer = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config())
        prepared = tq.prepare_pt2e(torch.export.export(model, inputs), quantizer)
        quantized = tq.convert_pt2e(tq.calibrate(prepared, [inputs]))
        print(*(row.quantizer for row in tq.ledger_of(quantized).rows))

        edge = to_edge_transform_and_lower(
            torch.export.export(quantized, inputs), partitioner=[XnnpackPartitioner()]
        )
        stored = edge.to_executorch().buffer  # the runtime reads it, and does not keep it
        program = Runtime.get().load_program(stored)
        method = program.load_method("forward")
        found, expected = method.execute(list(inputs))[0], quantized(*inputs)
        print(bool((found - expected).abs().max() < 0.02 * expected.abs().max()))
    """
    assert environment.run(code) == [
        f"xnnpack_executorch {executorch.version} ok",
        f"nxp {executorch.version} missing",
        "XNNPACKQuantizer XNNPACKQuantizer",
        "True",
    ]
