"""Rules for data movement and clamping, which do not compute with the integers."""

from __future__ import annotations

import attrs
import torch
from torch.fx import Node

from torchquilt.pt2e.reference.arithmetic import rescaled
from torchquilt.pt2e.reference.sites import Site
from torchquilt.pt2e.reference.tensors import Grid
from torchquilt.pt2e.reference.writer import Writer

_ATEN = torch.ops.aten


def moved(site: Site, write: Writer, grid: Grid) -> Node:
    """The operator on the integers themselves, which are in the order of the numbers they stand for."""
    (source,) = site.sources
    _, *options = site.arguments.values()
    integers = write(site.anchor.target, source.integers, *options)
    return rescaled(write, attrs.evolve(source, integers=integers), grid)


def clipped(site: Site, write: Writer, grid: Grid) -> Node:
    """Integers that are at most cut off, by an activation of their own, or brought to another grid."""
    (source,) = site.sources
    return rescaled(write, source, grid)


def joined(site: Site, write: Writer, grid: Grid) -> Node:
    """Integers put together, each brought to the grid of the output first where it is on another one."""
    parts = [rescaled(write, source, grid) for source in site.sources]
    return write(_ATEN.cat.default, parts, site.arguments["dim"])
