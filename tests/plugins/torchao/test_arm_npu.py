"""Contribution for NPUs of Arm, without Arm's tools: reading what they make, and errors where they lack."""

from __future__ import annotations

import struct
import sys

import pytest

import torchquilt as tq
from torchquilt_torchao import ethos_u
from torchquilt_torchao.arm_npu import kernels_of

CONV, POOL, DMA, READS, WRITES, BASE = 0x02, 0x05, 0x10, 0x105, 0x114, 0x4000


def block(name: bytes, content: bytes, *, is_outside: bool = False) -> bytes:
    """A block of a payload, as ExecuTorch writes them."""
    return struct.pack("<16sI?11x", name, len(content), is_outside) + content + bytes(-len(content) % 16)


def payload(*commands: int, is_outside: bool = False) -> bytes:
    """A payload with these commands, behind the header for the driver."""
    header = (0x31504F43, 0x1, 7, 9, 0x5, 0x5, 0x5, len(commands) << 16 | 0x2)
    words = struct.pack(f"<{len(header) + len(commands)}I", *header, *commands)
    blocks = {b"vela_bin_stream": b"", b"cmd_data": words, b"weight_data": bytes(range(1, 20))}
    return b"".join(block(name, content, is_outside=is_outside) for name, content in blocks.items())


def set_to(register: int, value: int) -> int:
    """The command that sets a register."""
    return value << 16 | register


def test_the_operations_of_a_payload_are_read() -> None:
    """With the types that the registers have when an operation begins."""
    found = kernels_of(
        payload(
            set_to(READS, 0x41), set_to(WRITES, 0x101), BASE, 0x0002, CONV, set_to(WRITES, 0x5), POOL, DMA
        )
    )
    assert [*map(str, found)] == ["NPU_OP_CONV(int8) -> int8", "NPU_OP_POOL(int8) -> int32"]


@pytest.mark.parametrize(
    ("register", "value", "kernel"),
    [
        (READS, 0x0, "(uint8) -> int8"),
        (READS, 0x5, "(int16) -> int8"),
        (READS, 0x9, "(int32) -> int8"),
        (WRITES, 0x0, "(int8) -> uint8"),
        (WRITES, 0x3, "(int8) -> int16"),
    ],
)
def test_types_are_read_from_registers(register: int, value: int, kernel: str) -> None:
    """The numbers are those of Vela's ``ifm_precision`` and ``ofm_precision``."""
    given = payload(set_to(READS, 0x1), set_to(WRITES, 0x1), set_to(register, value), CONV)
    assert [*map(str, kernels_of(given))] == [f"NPU_OP_CONV{kernel}"]


def test_what_is_outside_of_the_payload_is_not_read() -> None:
    """A block then has a digest, whose bytes are no commands."""
    assert [*kernels_of(payload(CONV, POOL, is_outside=True))] == []


def test_words_behind_commands_are_no_commands() -> None:
    """An address may look like any operation."""
    assert [*kernels_of(payload(BASE, CONV, BASE | 0x10, POOL))] == []


@pytest.mark.parametrize("cut", [0, 7, 40, 70])
def test_a_payload_that_is_cut_off_has_what_is_there(cut: int) -> None:
    """Nothing is read behind its end."""
    assert [*kernels_of(payload(CONV, POOL)[:cut])] == []


@pytest.mark.parametrize("missing", ["ethosu", "executorch"])
def test_missing_packages_are_named_with_the_pip_line(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is lowered, and not as a reason to leave all in float."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(tq.LoweringError, match="not installed") as caught:
        ethos_u("ethos-u55-128").partitioners()
    assert caught.value.remedy == "pip install executorch tosa-tools ethos-u-vela"
