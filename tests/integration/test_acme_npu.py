"""A plugin of a third party, from its source folder to a model that it quantized.

Nothing here sees the source tree; see ``test_installation`` for how the environments are made.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import importlib_metadata
import pytest

from integration.test_installation import PROJECTS, ROOT, Environment, build_wheel, needed_by, run

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

ACME = ROOT / "examples/acme_npu"
GUIDE = ROOT / "docs/writing-a-plugin.md"
_MOST_LINES = 150
_SNIPPET = re.compile(r"^```(?P<language>\w+) (?P<file>\S+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)

# What a model of two kinds of layers comes to, each quantized by another backend.
_COMPOSE = """
    import torch
    import torchquilt as tq

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    inputs = (torch.rand(16, 64) - 0.25,)
    acme = tq.quantizer("acme_npu")
    acme.set_module_name("0", acme.PRESETS["int16_int4"]())
    xnnpack = tq.quantizer("xnnpack", preset="static_int8_per_channel")
    quantizer = tq.ComposableQuantizer([acme, xnnpack])
    exported = torch.export.export(model.eval(), inputs)
    prepared = tq.prepare_pt2e(exported, quantizer, activation_observer="minmax")
    quantized = tq.convert_pt2e(tq.calibrate(prepared, [inputs]))
    for row in tq.ledger_of(quantized):
        print(row.op, row.quantizer, row.pattern)
    for node in quantized.graph.nodes:
        if node.op == "call_function" and "dequantize" in str(node.target):
            limits = [value for value in node.args if isinstance(value, (int, torch.dtype))]
            print(str(node.target).split(".")[1], *limits)
    with torch.no_grad():
        reference, found = model(*inputs), quantized(*inputs)
    print(bool((reference - found).norm() < 0.15 * reference.norm()))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with core, XNNPACK and Acme, and what the core and the kit need."""
    made = Environment(tmp_path_factory.mktemp("acme") / "env")
    run(sys.executable, "-m", "venv", "--without-pip", made.folder)
    for project in (PROJECTS["core"], PROJECTS["xnnpack"], ACME):
        made.install(build_wheel(project, tmp_path_factory.mktemp("wheel")))
    made.link_needs_of_core(without=set())
    for name in ("pytest", "hypothesis"):  # the extra "testing" of the core
        distribution = importlib_metadata.distribution(name)
        for needed in (name, *needed_by(distribution, without=set())):
            made.link(importlib_metadata.distribution(needed))
    return made


def test_the_example_is_short() -> None:
    """The whole plugin has fewer than 150 lines of Python."""
    files = sorted((ACME / "src").rglob("*.py"))
    assert len(files) == 5
    assert sum(len(file.read_text().splitlines()) for file in files) < _MOST_LINES


def test_the_extra_for_testing_is_what_the_kit_needs(environment: Environment) -> None:
    """The core's wheel declares pytest and hypothesis for those who test a plugin alone."""
    (core,) = importlib_metadata.distributions(name="torchquilt", path=[str(environment.site)])
    extra = [line for line in core.requires or () if "extra == 'testing'" in line.replace('"', "'")]
    assert {re.split(r"[>=; ]", line)[0] for line in extra} == {"pytest", "hypothesis"}


def test_the_plugin_is_discovered(environment: Environment) -> None:
    """Once its wheel is installed it is listed with its presets, without torch, beside XNNPACK."""
    code = """
        import sys
        import torchquilt as tq
        for b in tq.backends():
            print(b.name, b.distribution, b.status)
        print(*tq.backends()[0].manifest.preset_names, "torch" in sys.modules)
    """
    assert environment.run(code) == [
        "acme_npu torchquilt-acme-npu ok",
        "xnnpack torchquilt-xnnpack ok",
        "int8 int16 int16_int4 False",
    ]


def test_it_composes_with_xnnpack(environment: Environment) -> None:
    """Of a model with two linear layers it takes the first one with 4-bit weights, and XNNPACK the rest."""
    lines = environment.run(_COMPOSE)
    assert lines[:3] == [
        "aten.linear.default AcmeNPUQuantizer linear_int4",
        "aten.relu.default None ",
        "aten.linear.default XNNPACKQuantizer linear",
    ]
    assert "dequantize_per_channel_group -8 7 torch.int8 32 torch.float32" in lines
    assert "dequantize_per_tensor 0 -32768 32767 torch.int16" in lines
    assert lines[-1] == "True"


def test_it_passes_the_kit(environment: Environment, tmp_path: Path) -> None:
    """The command of the documentation, run in an empty folder, finds true all that it claims."""
    command = [str(environment.python), "-I", "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [
            *command,
            "--pyargs",
            "torchquilt.testing",
            "--torchquilt-backend=acme_npu",
            "--torchquilt-shapes=2",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    table = done.stdout[done.stdout.index("what was found") :]
    rows = re.findall(r"^(\S+)-static +yes +yes .* acme_npu: not checked$", table, re.MULTILINE)
    assert rows == ["linear_relu", "linear", "linear_int4", "conv2d_relu", "conv2d", "silu"]
    assert "FAILED" not in table


@pytest.mark.parametrize("number", range(len(_SNIPPET.findall(GUIDE.read_text()))))
def test_the_guide_shows_the_code_of_the_folder(number: int) -> None:
    """Each snippet that is named after a file stands in that file, letter by letter."""
    snippet = list(_SNIPPET.finditer(GUIDE.read_text()))[number]
    assert snippet["code"] in (ACME / snippet["file"]).read_text()


def test_the_guide_shows_every_file() -> None:
    """No file with code in it is left out of the walk, and no snippet is without the name of its file."""
    text = GUIDE.read_text()
    shown = {snippet["file"] for snippet in _SNIPPET.finditer(text)}
    wanted = {str(path.relative_to(ACME)) for path in (ACME / "src").rglob("*.py")} | {"pyproject.toml"}
    assert shown >= wanted - {"src/torchquilt_acme_npu/__init__.py"}
    assert not re.findall(r"^```(?:python|toml)$", text, re.MULTILINE)
