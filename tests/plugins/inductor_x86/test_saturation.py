"""Ranges: without VNNI sums of products saturate, unless activations use half of their range."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long

#: A product whose weights and inputs are as large as can be, on a processor as the environment says.
PRODUCT = """
import json, sys
import torch
torch.manual_seed(0)
largest = int(sys.argv[1])
onednn = torch.ops.onednn
weight = torch.full((16, 64), 127, dtype=torch.int8)
given = torch.full((4, 64), largest, dtype=torch.uint8)
packed = onednn.qlinear_prepack(weight, None)
found = onednn.qlinear_pointwise.default(
    given, 1.0, 0, packed, torch.ones(16), torch.zeros(16, dtype=torch.int64), None,
    1.0, 0, torch.float32, "none", [], "",
)
print(json.dumps(float(found.max())))
"""


def product(largest: int, instructions: str) -> float:
    """Result of the kernel with a range, in a process that is limited to an instruction set."""
    made = subprocess.run(
        [sys.executable, "-c", PRODUCT, str(largest)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
        check=True,
    )
    found: float = json.loads(made.stdout)
    return found


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_half_of_the_range_is_right_without_vnni(instructions: str) -> None:
    """The whole range is not: the sum of two products is cut off."""
    assert product(127, instructions) == 64 * 127 * 127
    assert product(255, instructions) < 64 * 255 * 127
