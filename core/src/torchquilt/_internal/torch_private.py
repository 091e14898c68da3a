"""Private API of torch that torchquilt needs, in one module, so that an upgrade of torch is one file.

A name is imported when it is first used. Importing this module does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

#: Name → module of torch, and the attribute in it; empty where the module itself is meant.
_HOME = {
    # A graph module is copied as one, so that its code is not generated.
    "CodeOnlyModule": ("torch.fx.graph_module", "_CodeOnlyModule"),
    # Shapes, dtypes and strides that export recorded.
    "FakeTensor": ("torch._subclasses", "FakeTensor"),
    # Computes with fake tensors.
    "FakeTensorMode": ("torch._subclasses", "FakeTensorMode"),
    # Control flow, as the target of a node.
    "HigherOrderOperator": ("torch._ops", "HigherOrderOperator"),
    # An ATen operator, as the target of a node.
    "OpOverload": ("torch._ops", "OpOverload"),
    # The calling convention of an exported module.
    "PyTreeCodeGen": ("torch.fx.graph", "_PyTreeCodeGen"),
    # Sees each operator that torch runs.
    "TorchDispatchMode": ("torch.utils._python_dispatch", "TorchDispatchMode"),
    # What copying a graph module keeps.
    "USER_PRESERVED_ATTRIBUTES_KEY": ("torch.fx.graph_module", "_USER_PRESERVED_ATTRIBUTES_KEY"),
    # The smallest and largest size of a dynamic dimension.
    "bound_sympy": ("torch.utils._sympy.value_ranges", "bound_sympy"),
    # The stack of function transforms.
    "functorch": ("torch._C._functorch", ""),
    # Nested inputs and outputs as flat lists.
    "pytree": ("torch.utils._pytree", ""),
    # Importing it registers the operators of ``quantized_decomposed``.
    "qdq_registration": ("torch.ao.quantization.fx._decomposed", ""),
}

__all__ = [
    "CodeOnlyModule",
    "FakeTensor",
    "FakeTensorMode",
    "HigherOrderOperator",
    "OpOverload",
    "PyTreeCodeGen",
    "TorchDispatchMode",
    "USER_PRESERVED_ATTRIBUTES_KEY",
    "active_ddp",
    "bound_sympy",
    "functorch",
    "is_in_backward",
    "pytree",
    "qdq_registration",
    "schema_fields",
]

if TYPE_CHECKING:
    from torch._C import _functorch as functorch
    from torch._ops import HigherOrderOperator as HigherOrderOperator
    from torch._ops import OpOverload as OpOverload
    from torch._subclasses import FakeTensor as FakeTensor
    from torch._subclasses import FakeTensorMode as FakeTensorMode
    from torch.ao.quantization.fx import _decomposed as qdq_registration
    from torch.fx.graph import _PyTreeCodeGen as PyTreeCodeGen
    from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY as USER_PRESERVED_ATTRIBUTES_KEY
    from torch.fx.graph_module import _CodeOnlyModule as CodeOnlyModule
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._sympy.value_ranges import bound_sympy as bound_sympy
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _HOME[name]
        found = import_module(module)
        value = globals()[name] = getattr(found, attribute) if attribute else found
        return value


def is_in_backward() -> bool:
    """Whether this thread runs within a backward pass; compiled code is taken not to."""
    import torch

    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


def active_ddp() -> Any:
    """The ``DistributedDataParallel`` whose forward pass runs, or None."""
    import torch.distributed

    if not torch.distributed.is_available():
        return None
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel._active_ddp_module


def schema_fields() -> frozenset[str]:
    """Names of all fields that this torch reads from a saved program. It ignores those of other names."""
    schema = import_module("torch._export.serde.schema")
    kinds = [kind for kind in vars(schema).values() if isinstance(kind, type)]
    return frozenset(
        name
        for kind in kinds
        if kind.__module__ == schema.__name__
        for name in getattr(kind, "__annotations__", {})
    )
