"""Private API of torch is imported through one module, and each name of it is what it is taken for."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchquilt._internal import torch_private as private

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*(ROOT / "core/src").rglob("*.py"), *ROOT.glob("plugins/*/src/*/*.py")])


def imported(path: Path) -> set[str]:
    """Full names of what a module imports of torch."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if name.startswith("torch.")}


def is_private(name: str) -> bool:
    """Whether a part of a dotted name is private."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_other_module_reaches_into_torch(path: Path) -> None:
    """Private modules of torch are imported through the one module."""
    if path.name == "torch_private.py":
        return
    assert not {name for name in imported(path) if is_private(name)}


def program() -> torch.export.ExportedProgram:
    """A linear layer of two inputs in a dict."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
            out: torch.Tensor = self.fc(x["a"]) + x["b"]
            return out

    size = torch.export.Dim("size", min=2, max=8)
    inputs = {"a": torch.zeros(3, 4), "b": torch.zeros(3, 2)}
    return torch.export.export(Model(), (inputs,), dynamic_shapes=({"a": {0: size}, "b": {0: size}},))


def test_export_records_fake_tensors() -> None:
    """A value of a node is a fake tensor, with the mode that made it."""
    value = program().graph.find_nodes(op="placeholder")[0].meta["val"]
    assert isinstance(value, private.FakeTensor)
    assert isinstance(value.fake_mode, private.FakeTensorMode)


def test_targets_are_overloads() -> None:
    """An operator of a program is an overload, control flow is none."""
    (call,) = [node for node in program().graph.nodes if "linear" in str(node.target)]
    assert isinstance(call.target, private.OpOverload)
    assert isinstance(torch.ops.higher_order.cond, private.HigherOrderOperator)


def test_an_exported_module_has_the_convention_of_a_pytree() -> None:
    """The graph of a module says how its nested inputs are flattened."""
    assert isinstance(program().module().graph._codegen, private.PyTreeCodeGen)


def test_bounds_of_a_dynamic_size() -> None:
    """The range of a symbol that export keeps is that of the dimension."""
    exported = program()
    size = exported.graph.find_nodes(op="placeholder")[-1].meta["val"].shape[0]
    bounds = private.bound_sympy(size.node.expr, exported.range_constraints)
    assert (int(bounds.lower), int(bounds.upper)) == (2, 8)


def test_nested_values_are_flattened_and_put_together() -> None:
    """Leaves in order, and the structure without them."""
    leaves, structure = private.pytree.tree_flatten({"a": [1, 2], "b": (3,)})
    assert leaves == [1, 2, 3]
    assert private.pytree.tree_unflatten(leaves, structure) == {"a": [1, 2], "b": (3,)}


def test_the_stack_of_function_transforms_is_counted() -> None:
    """Within vmap there is one layer more."""
    depths = []

    def note(x: torch.Tensor) -> torch.Tensor:
        depths.append(private.functorch.get_dynamic_layer_stack_depth())
        return x

    before = private.functorch.get_dynamic_layer_stack_depth()
    torch.vmap(note)(torch.zeros(2))
    assert depths == [before + 1]


def test_the_fields_of_a_saved_program() -> None:
    """Those of the schema that this torch writes."""
    assert {"graph_module", "schema_version", "as_tensor", "use_pickle"} <= private.schema_fields()
    assert "no_such_field" not in private.schema_fields()


def test_copies_of_graph_modules() -> None:
    """The class that a graph module is copied as, and the key of what its copy keeps."""
    assert issubclass(private.CodeOnlyModule, nn.Module)
    assert isinstance(private.USER_PRESERVED_ATTRIBUTES_KEY, str)


def test_a_dispatch_mode_sees_each_operator() -> None:
    """It is handed the overload and the arguments, and its answer is the result."""
    seen = []

    class Mode(private.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.relu(torch.zeros(2))
    assert "aten.relu.default" in seen


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """A misspelt name fails as it does with every module."""
    with pytest.raises(AttributeError, match="no attribute 'FakeTenser'"):
        private.FakeTenser  # noqa: B018


def test_the_operators_of_qdq_are_registered() -> None:
    """Importing the module that has them lets ``torch.ops`` know them."""
    assert private.qdq_registration is not None
    assert torch.ops.quantized_decomposed.quantize_per_tensor.default is not None
