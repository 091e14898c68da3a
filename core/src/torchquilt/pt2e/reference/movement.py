"""Rules for data movement and clamping, which do not compute with the integers."""

from __future__ import annotations

import attrs
import torch
from torch.fx import Node

from torchquilt.pt2e.reference.arithmetic import rescaled
from torchquilt.pt2e.reference.sites import Site
from torchquilt.pt2e.reference.tensors import ActivationQParams
from torchquilt.pt2e.reference.writer import Writer

_ATEN = torch.ops.aten


def moved(site: Site, write: Writer, qparams: ActivationQParams) -> Node:
    """The operator on the integers themselves, which are in the order of the numbers they stand for."""
    (source,) = site.sources
    _, *options = site.arguments.values()
    integers = write(site.anchor.target, source.integers, *options)
    return rescaled(write, attrs.evolve(source, integers=integers), qparams)


def clipped(site: Site, write: Writer, qparams: ActivationQParams) -> Node:
    """Integers that are at most cut off, by an activation of their own, or rescaled to other parameters."""
    (source,) = site.sources
    return rescaled(write, source, qparams)


def joined(site: Site, write: Writer, qparams: ActivationQParams) -> Node:
    """Integers put together, each rescaled to the parameters of the output first where it has others."""
    parts = [rescaled(write, source, qparams) for source in site.sources]
    return write(_ATEN.cat.default, parts, site.arguments["dim"])
