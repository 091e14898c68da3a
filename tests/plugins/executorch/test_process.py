"""Cases that must not end the process, each with the real runtime in a process of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

import torchquilt as tq
from plugins.executorch.models import TOKENS, Encoder, composed, converted
from strategies import Fn, normal
from torchquilt_executorch.known_noise import without_known_lines, without_known_records

#: It takes long: `make test-long` runs it.
pytestmark = pytest.mark.long

_BEGINNING = """
    import sys
    import torch
    import torchquilt as tq
    from torchquilt.lowering import load

    PATH = sys.argv[1]

    def told(action):
        try:
            action()
        except tq.TorchquiltError as error:
            return type(error).__name__
        return "nothing"
"""


def in_a_process(code: str, path: Path) -> list[str]:
    """The lines that code prints in a fresh process, which has to end by itself and well."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(_BEGINNING) + dedent(code), str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


def test_lowering_and_running_say_nothing_that_is_known_and_harmless() -> None:
    """Warnings of torchao and ExecuTorch about kernels and files of other processors do not matter here."""
    code = """
        from torch import nn
        from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

        inputs = (torch.randn(2, 4),)
        quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
        prepared = tq.prepare_pt2e(torch.export.export(nn.Linear(4, 4).eval(), inputs), quantizer)
        program = tq.lower(tq.convert_pt2e(tq.calibrate(prepared, [inputs])), inputs)
        program.run(*inputs)
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(_BEGINNING) + dedent(code), ""],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_what_is_not_known_is_still_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Only known lines and records are left out, and only while it lasts."""
    logger = logging.getLogger("torchao")
    with without_known_lines():
        sys.stderr.write("[cpuinfo_utils.cpp:71] Reading file\nsomething new\n")
    assert capsys.readouterr().err == "something new\n"
    with without_known_records():
        known = logging.LogRecord("torchao", 30, "", 0, "Failed to load /x/torchao/_C_new.so", None, None)
        new = logging.LogRecord("torchao", 30, "", 0, "Something else failed", None, None)
        assert [bool(logger.filter(record)) for record in (known, new)] == [False, True]
    assert logger.filter(known)


@cache
def encoder_program() -> tq.LoweredProgram:
    """An embedding that needs the quantized kernels, and a delegate."""
    return tq.lower(converted(Encoder(), composed(), TOKENS), (TOKENS,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The program alone, as a device gets it."""
    found = tmp_path / "encoder.pte"
    found.write_bytes(encoder_program().buffer)
    return found


def test_kernel_libraries_load_by_themselves(path: Path) -> None:
    """A process that has only loaded the program finds the kernels of the backend that is installed."""
    code = """
        program = load(PATH)
        print("quantized_decomposed::embedding_byte.out" in program.operators)
        print(tuple(program.run(torch.zeros(2, 5, dtype=torch.int64)).shape))
    """
    assert in_a_process(code, path) == ["True", "(2, 5, 4)"]


def test_a_program_whose_kernels_are_missing(tmp_path: Path) -> None:
    """It is an error of ours, in place of a number; the process goes on."""
    model = converted(Fn(lambda m, x: m.fc(x).sort()[0], fc=nn.Linear(8, 8)), composed(), normal(3, 8))
    path = tmp_path / "sort.pte"
    path.write_bytes(tq.lower(model, (normal(3, 8),)).buffer)
    code = """
        program = load(PATH)
        for _ in range(2):
            print(told(lambda: program.run(torch.ones(3, 8))))
    """
    assert in_a_process(code, path) == ["MissingRuntimeError"] * 2


def test_a_program_that_is_cut_off(path: Path) -> None:
    """At whatever length, down to nothing; the runtime never sees it."""
    code = """
        from pathlib import Path
        whole = Path(PATH).read_bytes()
        lengths = [0, 1, 7, 8, 40, 72, *range(100, len(whole) - 16, 997)]
        found = set()
        for length in lengths:
            Path(PATH).write_bytes(whole[:length])
            found.add(told(lambda: load(PATH)))
        print(len(lengths) > 10, found)
    """
    assert in_a_process(code, path) == ["True {'ProgramError'}"]


def test_something_else_in_the_place_of_a_program(path: Path) -> None:
    """Zeros, text, an archive, and a header in front of noise."""
    code = """
        import random
        from pathlib import Path
        whole = Path(PATH).read_bytes()
        noise = random.Random(0).randbytes(len(whole) - 80)
        for content in (bytes(4096), b"text" * 999, b"PK" + bytes(4096), whole[:80] + noise):
            Path(PATH).write_bytes(content)
            print(told(lambda: load(PATH)))
    """
    assert in_a_process(code, path) == ["ProgramError"] * 4


def test_a_program_that_was_changed_beside_its_report(tmp_path: Path) -> None:
    """A byte that differs anywhere, also in what the runtime would have taken, is told by the digest."""
    path = tmp_path / "encoder.pte"
    encoder_program().save(path)
    code = """
        import random
        from pathlib import Path
        whole, random = Path(PATH).read_bytes(), random.Random(0)
        found = set()
        for _ in range(50):
            changed = bytearray(whole)
            changed[random.randrange(80, len(whole))] ^= 1 << random.randrange(8)
            Path(PATH).write_bytes(bytes(changed))
            found.add(told(lambda: load(PATH)))
        print(found <= {"ModelError", "ProgramError"})
    """
    assert in_a_process(code, path) == ["True"]


def test_wrong_shapes_and_dtypes(path: Path) -> None:
    """Each is refused before the runtime sees it; the next call, a right one, runs."""
    code = """
        program = load(PATH)
        right = torch.zeros(2, 5, dtype=torch.int64)
        wrong = [(), (right, right), (right[:1],), (right.repeat(100, 100),), (right.float(),)]
        wrong += [(right.int(),), (right[0],), (None,), ("text",), ([right],), (5,)]
        print({told(lambda: program.run(*inputs)) for inputs in wrong})
        print(told(lambda: program.run(right)))
    """
    assert in_a_process(code, path) == ["{'ProgramInputError'}", "nothing"]


def test_the_memory_of_a_program_is_kept(path: Path) -> None:
    """The runtime reads from the bytes for as long as it runs, also where it alone still holds them."""
    code = """
        import gc
        program = load(PATH)
        right = torch.zeros(2, 5, dtype=torch.int64)
        first = program.run(right)
        runner = program._runner
        del program
        gc.collect()
        filler = [bytes(10_000) for _ in range(1000)]
        print(torch.equal(runner.run([right])[0], first))
    """
    assert in_a_process(code, path) == ["True"]
