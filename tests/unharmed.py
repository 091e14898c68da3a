"""A model in full, so that a test can show that it was left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule


@contextlib.contextmanager
def unharmed(*models: ExportedProgram | GraphModule) -> Iterator[None]:
    """After the block the models are what they were: graph, metadata, tensors, modules, flags.

    Tensors have to be the very same objects with the same content and without a gradient.
    """
    before = [Record(model) for model in models]
    yield
    for record, model in zip(before, models, strict=True):
        record.compare(Record(model))


class Record:
    """Everything about a model that the flow must not touch."""

    def __init__(self, model: ExportedProgram | GraphModule) -> None:
        is_program = isinstance(model, ExportedProgram)
        module: GraphModule = model.graph_module if isinstance(model, ExportedProgram) else model
        self.texts: dict[str, Any] = {
            "graph": [node.format_node() for node in module.graph.nodes],
            "code": module.code,
            "metadata": [(node.name, _plain(node.meta)) for node in module.graph.nodes],
            "notes": _plain(module.meta),
            "modules": [(name, type(part), part.training) for name, part in module.named_modules()],
            "hooks": [*module._forward_pre_hooks, *module._forward_hooks],
        }
        if isinstance(model, ExportedProgram):
            self.texts["signature"] = str(model.graph_signature)
            self.texts["ranges"] = str(model.range_constraints)
        held = {**model.state_dict, **model.constants} if is_program else _tensors_of(module)
        self.tensors = {name: (value, _own(value)) for name, value in held.items()}

    def compare(self, other: Record) -> None:
        """Fail where the two differ."""
        for what, text in self.texts.items():
            assert other.texts[what] == text, what
        assert list(other.tensors) == list(self.tensors)
        for name, (value, content) in self.tensors.items():
            found, now = other.tensors[name]
            assert found is value, name
            if isinstance(content, torch.Tensor):
                assert torch.equal(now, content), name
                assert found.requires_grad == content.requires_grad, name
                assert found.grad is None, name


def _plain(meta: dict[str, Any]) -> dict[str, str]:
    return {str(key): repr(value) for key, value in meta.items()}


def _tensors_of(module: torch.nn.Module) -> dict[str, Any]:
    """Parameters, buffers of either kind, and tensors that are plain attributes, under all their names."""
    return {
        f"{path}.{name}": value
        for path, part in module.named_modules(remove_duplicate=False)
        for table in (part._parameters, part._buffers, vars(part))
        for name, value in table.items()
        if isinstance(value, torch.Tensor)
    }


def _own(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)
