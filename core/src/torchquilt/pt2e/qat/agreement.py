"""Agreement of the ranks of ``DistributedDataParallel`` on what they saw.

Parameters agree, since their gradients are averaged. Ranges and running statistics are moved by each rank
with its own part of the batch. After each step the ranks take the smallest and largest value that any of them
saw, as one process with the whole batch would, and the mean of the running statistics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt._internal.torch_private import active_ddp, is_in_backward
from torchquilt.graph.code_generation import outdate
from torchquilt.graph.edits import take_origin
from torchquilt.graph.subgraphs import regions
from torchquilt.pt2e.qat.batch_norm import BatchNorm, TrainedNorm
from torchquilt.pt2e.qat.followed_points import ActivationPoint
from torchquilt.pt2e.qat.points import training_points


def add_agreement(model: GraphModule) -> GraphModule:
    """Let the ranks agree at the end of each forward pass; changes ``model``."""
    points = tuple(p for p in training_points(model).values() if isinstance(p, ActivationPoint))
    module = Agreement(points)
    model.add_module("agreement", module)
    statistics = _statistics(model)
    output = model.graph.output_node()
    with model.graph.inserting_before(output):
        node = model.graph.call_module("agreement", tuple(statistics))
    take_origin(node, output)
    node.meta["val"] = None
    outdate(model)
    return model


def _statistics(model: GraphModule) -> list[Any]:
    """The nodes of the outermost region that read running statistics which training moves."""
    found: dict[Any, None] = {}
    for node in regions(model)[0].module.graph.find_nodes(op="call_module"):
        held = model._modules.get(str(node.target))
        is_normalizing = isinstance(held, BatchNorm) or node.args[:1] == ("normalized",)
        if isinstance(held, TrainedNorm) and is_normalizing:
            found.update(dict.fromkeys(node.args[-3:-1]))
    return [*found]


class Agreement(torch.nn.Module):
    """The end of a forward pass, where ranks agree.

    Args:
        points: the activations whose ranges are followed. No submodules: they have names already.
    """

    def __init__(self, points: tuple[ActivationPoint, ...]) -> None:
        super().__init__()
        self.points = points

    def forward(self, *statistics: torch.Tensor) -> None:
        """Agree, in training mode, where ``DistributedDataParallel`` runs the model on several ranks."""
        if not self.training or is_in_backward():
            return
        parallel = None if torch.compiler.is_compiling() else active_ddp()
        if parallel is not None:
            self._agree(parallel.process_group, statistics)
        for point in self.points:
            point.end_of_pass()

    @torch.no_grad()
    def _agree(self, group: Any, statistics: tuple[torch.Tensor, ...]) -> None:
        import torch.distributed as dist

        size = dist.get_world_size(group)
        if size == 1:
            return
        points = [point for point in self.points if point.observes]
        if points:
            ends = [end for point in points for end in (point.low, -point.high)]
            dist.all_reduce(flat := _flat(ends), dist.ReduceOp.MIN, group=group)
            for point, low, high in zip(points, *_pairs(flat, ends), strict=True):
                point.low.copy_(low)
                point.high.copy_(-high)
                point.settle()
        if statistics:
            dist.all_reduce(flat := _flat([*statistics]), dist.ReduceOp.SUM, group=group)
            for tensor, mean in zip(statistics, _parts(flat / size, [*statistics]), strict=True):
                tensor.copy_(mean)


def _flat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1).float() for tensor in tensors])


def _parts(flat: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _pairs(flat: torch.Tensor, like: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    parts = _parts(flat, like)
    return parts[::2], parts[1::2]
