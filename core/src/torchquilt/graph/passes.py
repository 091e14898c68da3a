"""Passes: named steps from one graph module to the next, run as a flat list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import attrs
from torch.fx import GraphModule

from torchquilt.graph.subgraphs import regions

#: Is told the name of each pass and the model that it returned.
Watcher: TypeAlias = Callable[[str, GraphModule], None]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@attrs.frozen
class Pass:
    """One step of a list of steps.

    Args:
        name: how it is called in errors and by those who watch.
        function: takes a model, changes it or makes another one, and returns that.
    """

    name: str
    function: Callable[[GraphModule], GraphModule]


def everywhere(name: str, function: Callable[[GraphModule], GraphModule]) -> Pass:
    """A pass that is run for the model and for each subgraph in it by itself, the model first."""

    def run(model: GraphModule) -> GraphModule:
        result = function(model)
        for region in regions(result)[1:]:
            changed = function(region.module)
            if changed is not region.module:
                _replace(result, region.path, changed)
        return result

    return Pass(name, run)


def _replace(model: GraphModule, path: str, subgraph: GraphModule) -> None:
    holder, _, name = path.rpartition(".")
    setattr(model.get_submodule(holder), name, subgraph)


def run_passes(model: GraphModule, passes: Iterable[Pass]) -> GraphModule:
    """The model after all passes, in order."""
    watcher = _watcher.get()
    for step in passes:
        model = step.function(model)
        if watcher is not None:
            watcher(step.name, model)
    return model


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` of every pass that is run in here, once it has been run."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
