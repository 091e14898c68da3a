"""The Python code of graph modules: generated once, when a graph has its final form.

fx generates code for a whole graph whenever a graph module is made, copied or recompiled, which takes longer
than most passes do. So a pass that edits a graph only says that its code is out of date, copies are made
without code, and the function that returns a model generates it, once. Code that runs a model in between (a
quantizer, a callback) gets it generated on the spot.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt._internal.torch_private import USER_PRESERVED_ATTRIBUTES_KEY, CodeOnlyModule

# What torch's own copying takes over behind __init__, and what goes with the code of a graph.
_HOOKS = (
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_replace_hooks",
    "_create_node_hooks",
    "_erase_node_hooks",
    "_deepcopy_hooks",
)
_TABLES = (dict, OrderedDict, set)
_CODE = ("_code", "_lineno_map", "_prologue_start", "_in_spec", "_out_spec")


def outdate(model: GraphModule) -> None:
    """Note that a graph was edited: its code is generated before it is run, or by :func:`generate_code`.

    Reading ``forward`` before, as export does for its signature, generates it, too.
    """
    own: Any = type(model)  # which torch makes for each graph module
    own.forward = _NOT_GENERATED


@contextlib.contextmanager
def code_postponed(model: GraphModule) -> Iterator[None]:
    """Let ``recompile`` note, in a block that leaves the graph as it is, that its code is out of date.

    Some quantizers call it for each of hundreds of patterns.
    """
    own: Any = type(model)  # which torch makes for each graph module
    is_outermost = "recompile" not in vars(own)
    if is_outermost:
        own.recompile = outdate
    try:
        yield
    finally:
        if is_outermost:
            del own.recompile


def generate_code(model: torch.nn.Module) -> None:
    """Generate the code of each graph in a model that was edited."""
    for module in model.modules():  # one that holds others generates theirs, too
        if isinstance(module, GraphModule) and vars(type(module)).get("forward") is _NOT_GENERATED:
            module.recompile()


class _NotGenerated:
    """Stands for the ``forward`` of a graph module whose code is out of date; generates it when asked."""

    def __get__(self, model: GraphModule | None, kind: type | None = None) -> Any:
        if model is None:
            return self
        GraphModule.recompile(model)  # its own may be postponed
        return model.forward


_NOT_GENERATED = _NotGenerated()


def copy_without_code(model: GraphModule, memo: dict[int, Any]) -> GraphModule:
    """Copy a graph module and those in it as ``copy.deepcopy`` does, without generating code.

    Args:
        model: the original.
        memo: as for ``copy.deepcopy``: id of an object → what stands for it in the copy. Is added to.
    """
    for module in reversed([*model.modules()]):  # what holds others finds their copies in the memo
        if id(module) in memo:
            continue
        if isinstance(module, GraphModule):
            _copy_graph_module(module, memo)
        elif type(module) is torch.nn.Module:  # of such, export makes as many as the model has layers
            copied = memo[id(module)] = torch.nn.Module.__new__(torch.nn.Module)
            vars(copied).update(_copied_values(module, memo))
    made: GraphModule = memo[id(model)]
    return made


def _copied_values(module: torch.nn.Module, memo: dict[int, Any]) -> dict[str, Any]:
    """Deep copies of what a module holds. Most of it are empty tables, for which that is slow."""
    return {
        name: value.copy() if type(value) in _TABLES and not value else copy.deepcopy(value, memo)
        for name, value in vars(module).items()
    }


def _copy_graph_module(model: GraphModule, memo: dict[int, Any]) -> None:
    """The steps of ``GraphModule.__deepcopy__``, whose ``__init__`` would generate code."""
    copied = memo[id(model)] = type(model).__new__(type(model))
    values = _copied_values(model, memo)
    own: Any = type(copied)  # which torch makes for each graph module
    own.recompile = outdate
    try:
        model._deepcopy_init()(copied, CodeOnlyModule(values), values["_graph"])
    finally:
        del own.recompile
    for name in (*_CODE, *_HOOKS):
        if name in values:
            vars(copied)[name] = values[name]
    copied.meta = copy.deepcopy(model.meta, memo)
    for name, value in copied.meta.get(USER_PRESERVED_ATTRIBUTES_KEY, {}).items():
        setattr(copied, name, value)
    for hook in getattr(model, "_deepcopy_hooks", ()):
        hook(copied)
