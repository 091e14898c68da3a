"""Names of ``torchao.quantization.pt2e``, for code that changes the line of its imports and no more.

Specs, annotations, observers and base classes are torchao's own, since quantizers are written with them. The
steps of the flow are torchquilt's. The page "Migrating from torchao" has the table of what differs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization import pt2e
from torchao.quantization.pt2e import PartialWrapper as PartialWrapper
from torchao.quantization.pt2e import quantizer as theirs
from torchao.quantization.pt2e.quantizer.embedding_quantizer import EmbeddingQuantizer as EmbeddingQuantizer

import torchquilt as tq
from torchquilt import ComposableQuantizer as ComposableQuantizer
from torchquilt import convert_pt2e as convert_pt2e
from torchquilt import move_exported_model_to_eval, move_exported_model_to_train
from torchquilt.backend import chain, dequantize_of, quantize_of
from torchquilt_torchao.foreign_quantizer import foreign, has_callback

#: Switches of torchao's fake quantizes, and passes of its convert: there are neither here.
_ABSENT = frozenset(
    f"{verb}_{noun}"
    for verb in ("enable", "disable")
    for noun in ("fake_quant", "observer", "range_learning")
) | {"DuplicateDQPass", "PortNodeMetaForQDQ"}
_OF_TORCHAO = {name: module for module in (pt2e, theirs) for name in module.__all__ if name not in _ABSENT}
_HERE = ("EmbeddingQuantizer", "PartialWrapper", "convert_pt2e", "prepare_pt2e", "prepare_qat_pt2e")

__all__ = sorted({*_OF_TORCHAO, *_HERE})


def __getattr__(name: str) -> Any:
    """A name that is torchao's own."""
    if name in _OF_TORCHAO:
        return getattr(_OF_TORCHAO[name], name)
    raise AttributeError(f"torchquilt_torchao.compat has no {name!r}: see the page about migrating")


def prepare_pt2e(model: GraphModule, quantizer: Any) -> GraphModule:
    """Prepare for calibration, as :func:`torchquilt.prepare_pt2e`; a model of which nothing is quantized too.

    Each activation gets the observer of torchquilt that comes nearest to the one that its spec names; those
    of torchao are run for a quantizer that replaces them.

    Args:
        model: the ``.module()`` of an exported program. It is left as it was.
        quantizer: of torchao's protocol, or of torchquilt.
    """
    return tq.prepare_pt2e(model, _alike(quantizer), strict=False)


def prepare_qat_pt2e(model: GraphModule, quantizer: Any) -> GraphModule:
    """Prepare for training, as :func:`torchquilt.prepare_qat_pt2e`.

    Args:
        model: the ``.module()`` of an exported program. It is left as it was.
        quantizer: of torchao's protocol, or of torchquilt.
    """
    return tq.prepare_qat_pt2e(model, quantizer, strict=False)


def allow_exported_model_train_eval(model: GraphModule) -> GraphModule:
    """Let ``train()`` and ``eval()`` of an exported model switch it; changes and returns ``model``."""

    def train(mode: bool = True) -> torch.nn.Module:
        return move_exported_model_to_train(model) if mode else move_exported_model_to_eval(model)

    def evaluate() -> torch.nn.Module:
        return train(False)

    model.train = train  # type: ignore[method-assign, assignment]
    model.eval = evaluate  # type: ignore[method-assign, assignment]
    return model


def prepare_for_propagation_comparison(model: GraphModule) -> GraphModule:
    """Copy of a model that logs what each operator returns, for ``extract_results_from_loggers``.

    In models of torchquilt the operators that quantize an input come from the one that reads it. Its output
    is what it returns, so these are not logged.

    Args:
        model: the float model, or a converted one of torchquilt or torchao.
    """
    logged = copy.deepcopy(model)
    for node in logged.graph.nodes:
        read = dequantize_of(node) or quantize_of(node)
        if read is not None and _first_name(_behind_quantize(read.input)) != _first_name(node):
            node.meta.pop(pt2e.FROM_NODE_KEY, None)
    prepared: GraphModule = pt2e.prepare_for_propagation_comparison(logged)
    return prepared


def _behind_quantize(node: Node) -> Node:
    """The float tensor of which a node gives the integers; the node itself where it is not quantized."""
    made = quantize_of(node)
    return node if made is None else made.input


def _first_name(node: Node) -> str:
    """The name that a node had in the exported program."""
    names = chain(node)
    return names[-1][0] if names else node.name


def _alike(quantizer: Any) -> Any:
    """The quantizer, whose specs choose observers if it is one of torchao; torchao's, if it replaces them."""
    if isinstance(quantizer, tq.ComposableQuantizer):
        return tq.ComposableQuantizer([_alike(each) for each in quantizer.quantizers])
    subject = getattr(quantizer, "subject", quantizer)
    if not isinstance(subject, theirs.Quantizer):
        return quantizer
    return foreign(subject, observers="theirs" if has_callback(subject) else "alike")
