"""State that a model carries through the flow: its stage, and the record of what was decided."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from torchquilt.errors import ModelError
from torchquilt.graph.node_values import attribute, is_overwritten
from torchquilt.graph.subgraphs import regions
from torchquilt.ledger.ledger import Ledger

_STAGE_KEY = "torchquilt_stage"
_INITIAL_STATE_KEY = "torchquilt_initial_state"

#: Key of ``GraphModule.meta`` for the record, a dict of plain values.
RECORD_KEY = "torchquilt"


def stage_of(model: object) -> str | None:
    """``"prepared"``, ``"trainable"``, ``"converted"``, or None for any other model."""
    found: str | None = model.meta.get(_STAGE_KEY) if isinstance(model, GraphModule) else None
    return found


def stage_in_words(model: object) -> str:
    """Description of a model for errors: how far along it is, or else its type."""
    stage = stage_of(model)
    if stage is None:
        return f"{type(model).__module__}.{type(model).__qualname__}"
    return "a model that was prepared for training" if stage == "trainable" else f"a {stage} model"


def check_is_final(model: object, done: str, then: str, expected: str) -> GraphModule:
    """Refuse what has not been converted yet, and what is no graph.

    Args:
        model: a converted or a float graph is taken.
        done: what was asked for, as in "Only a converted model can be saved".
        then: the same in the remedy, as in "convert_pt2e, then save".
        expected: of the error.
    """
    if not isinstance(model, GraphModule) or stage_of(model) in ("prepared", "trainable"):
        raise ModelError(
            f"Only a converted model can be {done}.",
            expected=expected,
            got=stage_in_words(model),
            remedy=f"prepare_pt2e, calibrate, convert_pt2e, then {then}",
        )
    return model


def set_stage(model: GraphModule, stage: str, record: dict[str, Any] | None = None) -> None:
    """Note how far along a model is, and what was decided about it."""
    model.meta[_STAGE_KEY] = stage
    if record is not None:
        model.meta[RECORD_KEY] = record


def keep_initial_state(model: GraphModule) -> None:
    """Remember the buffers that the model writes to as they are now, before calibration moves them."""
    model.meta[_INITIAL_STATE_KEY] = {
        name: attribute(model, name).detach().clone()
        for region in regions(model)
        for node in region.module.graph.find_nodes(op="get_attr")
        if is_overwritten(node)
        for name in (f"{region.path}.{node.target}" if region.path else str(node.target),)
    }


def initial_state(model: GraphModule) -> dict[str, torch.Tensor]:
    """Name of each buffer that the model writes to → what it was before calibration."""
    found: dict[str, torch.Tensor] = model.meta.get(_INITIAL_STATE_KEY, {})
    return found


def restore_initial_state(model: GraphModule) -> None:
    """Set these buffers to what they were: a cache must not start with what calibration left in it."""
    for name, value in model.meta.pop(_INITIAL_STATE_KEY, {}).items():
        # In place, since it may have several names, and need not be one that is saved.
        attribute(model, name).copy_(value)


def ledger_of(model: torch.nn.Module) -> Ledger:
    """The ledger that :func:`torchquilt.prepare_pt2e` filled, of a prepared or converted model.

    Raises:
        ModelError: the model is neither.
    """
    record = model.meta.get(RECORD_KEY) if isinstance(model, GraphModule) else None
    if record is None:
        raise ModelError(
            "This model has no ledger.",
            expected="what prepare_pt2e or convert_pt2e returned",
            got=f"{type(model).__module__}.{type(model).__qualname__}",
            remedy="torchquilt.explain(exported, quantizer) makes one without preparing",
        )
    return Ledger.from_plain(record["ledger"])
