"""Rows of a dataset as batches of one.

A dataset of the ``datasets`` library is one for many uses: its rows are dicts of lists or tensors, without
the dimension of the batch, with labels and texts among them. Whatever looks like one is read like one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.fx import GraphModule


def is_dataset(batches: object) -> bool:
    """Whether these are rows with named columns, as a ``Dataset`` or ``IterableDataset`` has them."""
    return isinstance(batches, Iterable) and hasattr(batches, "column_names") and hasattr(batches, "features")


def batches_of_rows(rows: Iterable[Any], model: GraphModule) -> Iterator[Any]:
    """Each row as a batch: the columns that the model takes, as tensors of the dtype that it takes.

    A row that has one dimension less than the model's inputs becomes a batch of one.

    Args:
        rows: of a dataset; what is no mapping stays as it is.
        model: as export made it, or a copy.
    """
    wanted = {str(node.target): node.meta.get("val") for node in model.graph.find_nodes(op="placeholder")}
    for row in rows:
        if isinstance(row, Mapping):
            row = {name: _tensor(row[name], value) for name, value in wanted.items() if name in row}
        yield row


def _tensor(value: Any, like: Any) -> Any:
    if not isinstance(like, torch.Tensor):
        return value
    found = torch.as_tensor(value)
    if like.is_floating_point() or not found.is_floating_point():  # a fraction does not become an index
        found = found.to(like.dtype)
    return found[None] if found.dim() + 1 == like.dim() else found
