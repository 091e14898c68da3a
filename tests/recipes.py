"""Steps that the tests of recipes have in common."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

from torch import nn

import torchquilt as tq
from torchquilt_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config

STATIC = get_symmetric_quantization_config()
DYNAMIC = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
NARROW = get_symmetric_quantization_config(weight_qmin=-7, weight_qmax=7)


class Block(nn.Module):
    """A class of the user's own."""


def read(text: str) -> tq.Recipe:
    """A recipe from indented text; the schema is put before it, on the line of the opening quotes."""
    return tq.Recipe.from_toml("schema = 1" + dedent(text), file="r.toml")


def only(recipe: tq.Recipe) -> XNNPACKQuantizer:
    """The one quantizer, of XNNPACK, that a recipe makes."""
    (made,) = recipe.quantizer().quantizers
    assert isinstance(made, XNNPACKQuantizer)
    return made


def in_fresh_python(code: str) -> list[str]:
    """Output of code in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


#: The source of a backend whose class knows presets, and no rules.
PRESETS_ONLY = """
    class Acme:
        def __init__(self, preset=None):
            self.preset = preset
        @classmethod
        def from_preset(cls, name):
            return cls(name)
        def annotate(self, model):
            return model
"""
