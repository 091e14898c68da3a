"""Rows of an integer table, scaled to float once they are picked."""

from __future__ import annotations

import torch
from torch.fx import Node

from torchquilt.pt2e.reference.sites import Site
from torchquilt.pt2e.reference.tensors import PerAxis
from torchquilt.pt2e.reference.writer import Writer
from torchquilt.support.pattern import Reject

_ATEN = torch.ops.aten


def check_embedding(site: Site) -> Reject | None:
    """Whether the table has parameters for each of its rows."""
    (table,) = site.read("weight")
    if isinstance(table, PerAxis) and table.axis == 0:
        return None
    anchor = site.anchor
    return Reject("weight", (anchor,), f"the table of {anchor.name} has no scale for each of its rows")


def embedded(site: Site, write: Writer) -> Node:
    """``(row - zero_point) * scale`` in float32, for the rows that are picked and no others.

    The options of an embedding (``padding_idx``, ``scale_grad_by_freq``, ``sparse``) are left out: they
    only matter to gradients, which integers do not have.
    """
    (table,) = site.read("weight")
    assert isinstance(table, PerAxis)
    indices = site.arguments["indices"]
    rows = write.cast(write(_ATEN.embedding.default, table.integers, indices), torch.float32)
    zero_point, scale = (
        write(_ATEN.unsqueeze.default, write(_ATEN.index.Tensor, parameter, [indices]), -1)
        for parameter in (table.zero_point, table.scale)
    )
    shifted = write(_ATEN.sub.Tensor, rows, write.cast(zero_point, torch.float32))
    values = write(_ATEN.mul.Tensor, shifted, write.cast(scale, torch.float32))
    return write.cast(values, site.anchor.meta["val"].dtype)
