"""Running models on batches: each run begins with the state that the model has, and leaves it so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt._internal.terminal import progress
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt._internal.torch_private import pytree
from torchquilt.errors import AccuracyError, ModelError
from torchquilt.graph.edits import copy_model
from torchquilt.graph.function_transforms import leaving_transforms
from torchquilt.graph.node_values import attribute, is_overwritten
from torchquilt.graph.qdq import is_conversion
from torchquilt.graph.signature import call_arguments
from torchquilt.graph.subgraphs import nodes_of, regions
from torchquilt.graph.training_mode import is_random, moves_statistics
from torchquilt.pt2e.calibration.calibrate import number_of
from torchquilt.pt2e.calibration.single_rows import batches_of_rows, is_dataset
from torchquilt.pt2e.model_record import stage_in_words, stage_of
from torchquilt.pt2e.qat.exported import move_exported_model_to_eval
from torchquilt.pt2e.qat.settling import settle_once


class Runnable:
    """A model of its own, that is run on batches. Its buffers are reset before each run."""

    def __init__(self, model: GraphModule, role: str) -> None:
        self.model = model
        self.role = role
        self._state = {
            name: attribute(model, name).detach().clone()
            for region in regions(model)
            for node in region.module.graph.find_nodes(op="get_attr")
            if is_overwritten(node)
            for name in (f"{region.path}.{node.target}" if region.path else str(node.target),)
        }
        self._writes_inputs = any(map(is_overwritten, model.graph.find_nodes(op="placeholder")))

    def __call__(self, batch: object, number: int) -> list[Any]:
        """Outputs for a batch, in a row.

        Raises:
            AccuracyError: the batch does not go through the model.
        """
        args, kwargs = call_arguments(self.model, batch)
        if self._writes_inputs:
            args, kwargs = pytree.tree_map(_own, (args, kwargs))
        for name, value in self._state.items():
            attribute(self.model, name).copy_(value)
        try:
            # Random numbers that a model draws are the same in each run of a batch.
            with default_global_state(), leaving_transforms(), torch.no_grad(), torch.random.fork_rng([]):
                torch.manual_seed(number)
                return list(pytree.tree_leaves(self.model(*args, **kwargs)))
        except Exception as error:
            raise batch_error(number, self.role, error) from error


def batch_error(number: int, role: str, error: Exception) -> AccuracyError:
    """Error of a batch with which a model fails.

    Args:
        number: of the batch.
        role: the model in words, or what is done with it.
        error: the failure.
    """
    return AccuracyError(
        f"Batch {number} (counted from 0) does not go through the {role}.",
        batch=number,
        expected="inputs like the example inputs of the export",
        got=f"{type(error).__name__}: {error}",
        remedy="see the cause above; pass batches as for torchquilt.calibrate",
    )


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def float_copy(model: object) -> GraphModule:
    """A copy of the float model.

    Raises:
        ModelError: it is not an exported one, or a quantized one.
    """
    if isinstance(model, ExportedProgram):
        model = model.module()
    if not isinstance(model, GraphModule) or stage_of(model) is not None:
        raise ModelError(
            "The first model is the float one.",
            expected="a torch.export.ExportedProgram, or its .module()",
            got=stage_in_words(model),
            remedy="pass the exported model that was handed to prepare_pt2e",
        )
    if any(is_conversion(node) for node in nodes_of(model)):
        raise ModelError(
            "The first model is the float one.",
            expected="a float model as torch.export gave it",
            got="a graph that quantizes and dequantizes",
            remedy="pass the exported model that was handed to prepare_pt2e",
        )
    return copy_model(model)


def in_evaluation_mode(model: GraphModule, found: object) -> GraphModule:
    """A float model that was exported in training mode, as it is where its quantized model is evaluated.

    Dropout that the quantized model has, too, is meant. Changes and returns ``model``.

    Args:
        model: a copy of the float model.
        found: a copy of the quantized model, or a program.
    """
    drops = any(map(is_random, nodes_of(model)))
    is_meant = isinstance(found, GraphModule) and any(map(is_random, nodes_of(found)))
    if any(map(moves_statistics, nodes_of(model))) or (drops and not is_meant):
        move_exported_model_to_eval(model)
    return model


def quantized_copy(model: object) -> GraphModule:
    """A copy of a quantized model, in evaluation mode.

    Raises:
        ModelError: it is not quantized, or only prepared.
    """
    if isinstance(model, ExportedProgram):
        model = module_with_record(model)
    stage = stage_of(model)
    if not isinstance(model, GraphModule) or stage == "prepared":
        raise ModelError(
            "The second model is a quantized one.",
            expected="what convert_pt2e, prepare_qat_pt2e, load or lower returned",
            got=stage_in_words(model),
            remedy="convert_pt2e(prepared) first" if stage == "prepared" else None,
        )
    copied = copy_model(model)
    if stage == "trainable":
        _with_own_buffers(copied).eval()
    settle_once(copied)
    return copied


def _with_own_buffers(model: GraphModule) -> GraphModule:
    """Give a copy of a model that is being trained buffers of its own, since evaluation writes into them."""
    own: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = own.setdefault(id(value), value.detach().clone())
    return model


def module_with_record(program: ExportedProgram) -> GraphModule:
    """The module of a quantized program, with the record of how it came about."""
    module = program.module()
    assert isinstance(module, GraphModule)
    module.meta.update(program.graph_module.meta)
    return module


def checked_batches(batches: object, model: GraphModule) -> Iterable[Any]:
    """The batches, those of a dataset as the model takes them.

    Raises:
        AccuracyError: they are one batch, or nothing to go through.
    """
    if is_dataset(batches):
        assert isinstance(batches, Iterable)
        return batches_of_rows(batches, model)
    if isinstance(batches, (torch.Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise AccuracyError(
            "These are no batches to go through.",
            expected="an iterable of batches: a list, a DataLoader, a generator",
            got=type(batches).__name__,
            remedy="for one batch pass a list of it",
        )
    return batches


def run_on_each(batches: Iterable[object], run: Callable[[Any, int], object], doing: str) -> int:
    """Run something on each batch, with progress; return the number of batches.

    Args:
        batches: they are gone through once.
        run: takes a batch and its number.
        doing: words for the progress.

    Raises:
        AccuracyError: there is no batch.
    """
    done = 0
    with progress(doing, number_of(batches, None), "batches") as show:
        for number, batch in numbered(batches):
            run(batch, number)
            done = number + 1
            show(done)
    return done


def numbered(batches: Iterable[object], least: int = 1) -> Iterator[tuple[int, Any]]:
    """Batches with their numbers.

    Raises:
        AccuracyError: there are too few.
    """
    number = -1
    for number, batch in enumerate(batches):
        yield number, batch
    if number + 1 < least:
        raise AccuracyError(
            "There was no batch to run.",
            expected="at least one batch",
            got="an empty iterable",
            remedy="a generator can be read only once: pass a list to use it again",
        )
