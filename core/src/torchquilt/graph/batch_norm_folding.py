"""Fold BatchNorm into the preceding operator where that is exact.

``bn(conv(x)) = conv'(x)``, where for each output channel, with ``s = gamma / sqrt(variance + eps)``, the
weight is multiplied by ``s`` and the bias becomes ``(bias - mean) * s + beta`` (Jacob et al. 2017,
arXiv:1712.05877, section 3.2). It holds when all of these are constants (evaluation mode, statistics that
nothing writes to), the BatchNorm is the only reader of its input, and the channel that BatchNorm normalises
(dimension 1 of its input) is the output channel of the operator.

A BatchNorm *before* a convolution is never folded: the padding would have to have other values than zero, and
without it the two would be two orders of rounding for nothing gained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch.fx import GraphModule, Node

from torchquilt.graph.code_generation import outdate
from torchquilt.graph.constant_folding import constant_value
from torchquilt.graph.edits import drop_unused_tensors, erase_unused, free_name, read_tensor
from torchquilt.graph.module_scope import module_path
from torchquilt.graph.node_values import FOLDED, argument_of, attribute, constant_nodes, overload_name, rank

# Overload → the rank of the output at which dimension 1 is the output channel (that is: with a batch).
_CONVOLUTIONS = {f"aten.conv{n}d.{form}": n + 2 for n in (1, 2, 3) for form in ("default", "padding")}
_TRANSPOSED = {
    "aten.conv_transpose1d.default": 3,
    "aten.conv_transpose2d.input": 4,
    "aten.conv_transpose3d.input": 5,
}
# A linear's output channel is its last dimension, which is dimension 1 for matrices only.
_FOLDS_INTO = {**_CONVOLUTIONS, **_TRANSPOSED, "aten.linear.default": 2}


#: ``node.meta`` of an operator has the :class:`Folded` here, where folding is going to be undone.
UNFOLD_KEY = "torchquilt_unfold"


@attrs.frozen(eq=False)
class Folded:
    """Stored tensors that an operator and its BatchNorm read, and the names of the folded ones.

    Args:
        fold: the formulas.
        momentum: of the BatchNorm.
        weight, bias: names of the operator's own tensors; None where it has no bias.
        gamma, beta, mean, variance: of those of the BatchNorm; None where it has no such tensor.
        tensors: name → tensor, for all of them. A folded one may have taken the name in the model.
        folded_weight, folded_bias: names of what the operator reads instead.
    """

    fold: Fold
    momentum: float
    weight: str
    bias: str | None
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    tensors: Mapping[str, torch.Tensor]
    folded_weight: str
    folded_bias: str


def fold_batch_norm(
    model: GraphModule,
    may_fold: Callable[[Node, Node], bool] = lambda batch_norm, operator: True,
    *,
    keep: bool = False,
) -> GraphModule:
    """Fold each BatchNorm that can be into the convolution or linear before it; changes ``model``.

    A weight that somebody else reads, too, is left alone: the folded one gets a name of its own.

    Args:
        model: the model.
        may_fold: whether a BatchNorm may be folded into an operator, asked for each pair that can be.
        keep: keep all that goes into it, with the nodes that read it, and note in ``node.meta`` at
            :data:`UNFOLD_KEY` what that is. Then a BatchNorm is folded into an operator only, and not into
            what another one was folded into. One that several operators share is folded into each of them.
    """
    folding = _Folding(model, may_fold, keep=keep)
    for node in list(model.graph.nodes):
        while folding.fold_into(node):
            pass  # conv → bn → bn: the next one now stands behind the convolution
    if folding.is_any_folded:
        if not keep:
            drop_unused_tensors(model)
        outdate(model)
    return model


class _Folding:
    """One pass over a graph, and what it has to know about all of it."""

    def __init__(self, model: GraphModule, may_fold: Callable[[Node, Node], bool], *, keep: bool) -> None:
        self.model = model
        self._may_fold = may_fold
        self._keep = keep
        self.is_any_folded = False
        self._constants = set(constant_nodes(model.graph))
        self._reads = Counter(str(node.target) for node in model.graph.nodes if node.op == "get_attr")

    def fold_into(self, node: Node) -> bool:
        """Fold the BatchNorm behind ``node``; answers whether there was one that can be folded."""
        batch_norm = self._batch_norm_behind(node)
        if batch_norm is not None and not self._may_fold(batch_norm, node):
            return False
        values = None if batch_norm is None else self._folded(node, batch_norm)
        if batch_norm is None or values is None:
            return False
        replaced = [argument_of(node, role) for role in ("weight", "bias")]
        kept = self._kept(node, batch_norm) if self._keep else {}
        new = (self._store(node, "weight", values[0]), self._store(node, "bias", values[1]))
        if self._keep:
            kept["folded_weight"], kept["folded_bias"] = (str(read.target) for read in new)
            node.meta[UNFOLD_KEY] = Folded(**kept)
        node.args = (argument_of(node, "input"), *new, *node.args[3:])
        node.kwargs = {key: v for key, v in node.kwargs.items() if key not in ("input", "weight", "bias")}
        batch_norm.replace_all_uses_with(node)
        node.meta[FOLDED] = (*node.meta.get(FOLDED, ()), batch_norm)
        sources = [source for source in batch_norm.all_input_nodes if source is not node]
        self.model.graph.erase_node(batch_norm)
        for source in (*sources, *replaced):
            if source is not None:
                erase_unused(source)
        self.is_any_folded = True
        return True

    def _kept(self, node: Node, batch_norm: Node) -> dict[str, Any]:
        """Arguments of :class:`Folded` that are known before anything is stored."""
        names = {
            "weight": _name(argument_of(node, "weight")),
            "bias": _name(argument_of(node, "bias")),
            "gamma": _name(argument_of(batch_norm, "weight")),
            "beta": _name(argument_of(batch_norm, "bias")),
            "mean": _name(argument_of(batch_norm, "running_mean")),
            "variance": _name(argument_of(batch_norm, "running_var")),
        }
        tensors = {name: attribute(self.model, name) for name in names.values() if name is not None}
        momentum = argument_of(batch_norm, "momentum")
        return {"fold": Fold.of(node, batch_norm), "momentum": momentum, "tensors": tensors, **names}

    def _batch_norm_behind(self, node: Node) -> Node | None:
        """The BatchNorm that alone reads ``node``, if both have nothing but constants beside their input."""
        if len(node.users) != 1 or overload_name(node) not in _FOLDS_INTO:
            return None
        if rank(node) != _FOLDS_INTO[overload_name(node)]:
            return None
        (user,) = node.users
        if overload_name(user) != "aten.batch_norm.default" or argument_of(user, "input") is not node:
            return None
        statistics = (argument_of(user, "running_mean"), argument_of(user, "running_var"))
        if argument_of(user, "training") or None in statistics:
            return None
        weight = argument_of(node, "weight")
        affine = (argument_of(node, "bias"), argument_of(user, "weight"), argument_of(user, "bias"))
        if any(source not in self._constants for source in (weight, *statistics, *affine) if source):
            return None
        if self._keep and not self._can_be_unfolded(node, (weight, *statistics, *affine)):
            return None
        # F.linear takes a vector for a weight, too, and then has no output channel.
        return user if (rank(weight) or 0) >= 2 else None

    def _can_be_unfolded(self, node: Node, tensors: tuple[Node | None, ...]) -> bool:
        """Whether all tensors are stored, and the BatchNorm is the first behind the operator."""
        are_stored = all(tensor is None or tensor.op == "get_attr" for tensor in tensors)
        return are_stored and UNFOLD_KEY not in node.meta

    def _folded(self, node: Node, batch_norm: Node) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Weight and bias with the BatchNorm in them, in the dtype of the weight; None if they overflow."""

        def value(of: Node, name: str) -> Any:
            source = argument_of(of, name)
            return None if source is None else constant_value(self.model, source)

        fold = Fold.of(node, batch_norm)
        mean, variance = value(batch_norm, "running_mean"), value(batch_norm, "running_var")
        gamma, beta = value(batch_norm, "weight"), value(batch_norm, "bias")
        with torch.no_grad():
            inverse = fold.inverse(variance)
            weight = fold.weight(value(node, "weight"), fold.factor(inverse, gamma))
            shift = fold.bias(value(node, "bias"), mean, inverse, gamma, beta).to(weight.dtype)
        return (weight, shift) if _is_finite(weight) and _is_finite(shift) else None

    def _store(self, node: Node, role: str, value: torch.Tensor) -> Node:
        """A node that reads the new value: under the old name if only ``node`` reads that, else a new one."""
        source = argument_of(node, role)
        if source is None or source.op != "get_attr":
            name = free_name(self.model, f"{module_path(node)}.{role}".removeprefix("."))
        else:
            name = str(source.target)
            times = sum(argument is source for argument in (*node.args, *node.kwargs.values()))
            if self._reads[name] > 1 or len(source.users) > 1 or times > 1:
                name = free_name(self.model, f"{name}_{node.name}")
        new = read_tensor(self.model, name, torch.nn.Parameter(value, requires_grad=False), before=node)
        self._reads[name] = 1
        self._constants.add(new)
        return new


@attrs.frozen
class Fold:
    """The formulas with which a BatchNorm is folded; nothing of them needs constants, or forbids gradients.

    The order of operations is that of ``torch.nn.utils.fusion``, whose bits these are. Half precision is
    computed in float32 and rounded once.

    Args:
        eps: the BatchNorm's own.
        transposed_groups: groups of a transposed convolution; 0 for any other operator.
    """

    eps: float
    transposed_groups: int = 0

    @classmethod
    def of(cls, node: Node, batch_norm: Node) -> Fold:
        """The formulas for an operator and the BatchNorm behind it."""
        is_transposed = overload_name(node) in _TRANSPOSED
        return cls(argument_of(batch_norm, "eps"), int(argument_of(node, "groups")) if is_transposed else 0)

    def inverse(self, variance: torch.Tensor) -> torch.Tensor:
        """``1 / sqrt(variance + eps)``, for each channel."""
        return torch.rsqrt(_in_full(variance) + self.eps)

    def factor(self, inverse: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
        """Factor of the weight of each output channel."""
        return inverse if gamma is None else _in_full(gamma) * inverse

    def weight(self, weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The weight with the factor in it, in its own dtype."""
        return self.by_channel(_in_full(weight), factor).to(weight.dtype)

    def by_channel(self, weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """A weight times the factor of each output channel."""
        kernel = [1] * (weight.dim() - 2)
        groups = self.transposed_groups
        if not groups:
            return weight * factor.reshape(-1, 1, *kernel)
        # (in, out / groups, *kernel): the input channels lie group by group, and so do the output channels.
        by_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
        return (by_group * factor.reshape(groups, 1, weight.shape[1], *kernel)).reshape(weight.shape)

    def bias(
        self,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        inverse: torch.Tensor,
        gamma: torch.Tensor | None,
        beta: torch.Tensor | None,
    ) -> torch.Tensor:
        """The bias behind the folded weight, in float32 at least."""
        mean = _in_full(mean)
        shift = (-mean if bias is None else _in_full(bias) - mean) * inverse
        shift = shift if gamma is None else shift * _in_full(gamma)
        return shift if beta is None else shift + _in_full(beta)


def _name(node: Node | None) -> Any:
    return None if node is None else str(node.target)


def _in_full(value: torch.Tensor) -> torch.Tensor:
    """A tensor in float32, unless it has as many bits."""
    return value.float() if value.dtype.itemsize < 4 else value


def _is_finite(value: torch.Tensor) -> bool:
    """Whether no element is infinite or NaN. ``isfinite`` would make a copy of the whole weight."""
    return value.numel() == 0 or all(math.isfinite(end.item()) for end in value.aminmax())
