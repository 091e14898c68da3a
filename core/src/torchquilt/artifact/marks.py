"""Marks that quantizers and vendors leave in the metadata of nodes, and what a file keeps of them.

torch writes ``node.meta["custom"]`` as JSON, and no other key that is not its own.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from torchquilt._internal.text_tables import few
from torchquilt.errors import ArtifactError
from torchquilt.graph.subgraphs import nodes_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import GraphModule

KEPT = "custom"
#: Keys of torch's own, which it writes or finds anew.
_OF_TORCH = frozenset(
    {"example_value", "from_node", "nn_module_stack", "original_aten", "seq_nr", "source_fn_stack"}
    | {"stack_trace", "tensor_meta", "torch_fn", "unbacked_bindings", "val"}
)
_OWN = "torchquilt"


def check_marks(model: GraphModule | ExportedProgram) -> None:
    """Refuse marks that cannot be written, and warn of those that are lost or come back as something else.

    Args:
        model: what is going to be saved, before it is exported again.

    Raises:
        ArtifactError: a mark under ``node.meta["custom"]`` is no JSON.
    """
    from torch.export import ExportedProgram

    graph_module = model.graph_module if isinstance(model, ExportedProgram) else model
    lost: dict[str, None] = {}
    for node in nodes_of(graph_module):
        others = (str(key) for key in node.meta if key != KEPT and key not in _OF_TORCH)
        lost.update(dict.fromkeys(key for key in others if not key.startswith(_OWN)))
        for key, value in (node.meta.get(KEPT) or {}).items():
            if _read_back(node, key, value) != value or not isinstance(key, str):
                lost[f"{KEPT}[{key!r}]"] = None
    if lost:
        warnings.warn(
            f"Marks in the metadata of nodes are not kept, or come back as something else: "
            f"{few([*lost], 5)}. A file keeps texts, numbers, lists, and dicts of them whose keys are texts, "
            f'under node.meta["{KEPT}"].',
            UserWarning,
            stacklevel=4,
        )


def _read_back(node: Any, key: Any, value: Any) -> Any:
    """A mark as it comes back from a file."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            "A mark in the metadata of a node cannot be saved.",
            node=node.name,
            expected="texts, numbers, lists, and dicts of them whose keys are texts",
            got=f'node.meta["{KEPT}"][{key!r}] = {value!r}',
            remedy="take the mark away, or write it so",
        ) from error
