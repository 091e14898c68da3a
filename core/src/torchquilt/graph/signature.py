"""Signature of an exported model: inputs by position and by name, and their checks.

Importing this module does not import torch.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import GraphModule

# What torch runs around a call of an exported module. It checks there that the inputs have the structure of
# the exported ones: without, further items of a list or keys of a dict would be passed over in silence.
_CHECK_KEYS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "range_constraints",
    "validate_inputs",
)


def take_checks(model: GraphModule, original: GraphModule) -> None:
    """Let a copy of an exported module check its inputs as the original does; changes ``model``.

    A graph module leaves its hooks behind when it is copied.
    """
    for key in _CHECK_KEYS:
        if key in vars(original):
            vars(model)[key] = copy.copy(vars(original)[key])


def call_arguments(model: GraphModule, batch: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One batch as the arguments of a call, by position or by name as when the model was exported.

    Args:
        model: a model as export made it, or a copy.
        batch: a tuple or list of positional inputs, a mapping of keyword inputs, or the only input by
            itself. What was exported by position may be named here, and the other way round.

    Returns:
        Positional and keyword arguments. Inputs that do not fit are left as they are, since the call itself
        says best what is wrong with them.
    """
    args, kwargs = batch_arguments(batch)
    positional = _positional_inputs(model)
    if positional is None:
        return args, kwargs
    try:
        inputs = list(inspect.signature(model.forward).bind(*args, **kwargs).arguments.items())
    except TypeError:
        return args, kwargs
    return tuple(value for _, value in inputs[:positional]), dict(inputs[positional:])


def batch_arguments(batch: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One batch as positional and keyword arguments, as it is written."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)), {}


def _positional_inputs(model: GraphModule) -> int | None:
    """Number of inputs that were exported by position, None where that is not known."""
    known = getattr(model.graph._codegen, "pytree_info", None)
    structure = None if known is None else known.in_spec
    # Export writes the structure of (args, kwargs).
    if structure is None or structure.type is not tuple or structure.num_children != 2:
        return None
    count: int = structure.child(0).num_children
    return count
