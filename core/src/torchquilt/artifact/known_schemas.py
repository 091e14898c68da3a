"""Schemas of saved programs that :mod:`torchquilt.artifact.screening` knows, as data.

A version of torch that writes a further field is added here once somebody has looked at what torch does with
that field. A test compares the fields with those of the installed torch.
"""

from __future__ import annotations

from typing import Any

from torchquilt._internal import torch_private
from torchquilt.errors import ArtifactError

#: Schema version of a program, as torch writes it into the file → the torch that writes it.
VERSIONS: dict[tuple[int, int], str] = {(8, 20): "2.13 and 2.14"}

#: Fields of these schemas.
FIELDS = frozenset(
    {
        "arg", "as_bool", "as_bools", "as_complex", "as_custom_obj", "as_device", "as_expr",
        "as_float", "as_float_lists", "as_floats", "as_graph", "as_int", "as_int_lists", "as_ints",
        "as_layout", "as_memory_format", "as_name", "as_nested_tensors", "as_none", "as_operator",
        "as_optional_tensor", "as_optional_tensors", "as_scalar_type", "as_string",
        "as_string_to_argument", "as_strings", "as_sym_bool", "as_sym_bools", "as_sym_float",
        "as_sym_floats", "as_sym_int", "as_sym_ints", "as_tensor", "as_tensors", "buffer",
        "buffer_mutation", "buffer_name", "class_fqn", "config", "constant_input", "custom_obj",
        "custom_obj_name", "custom_obj_values", "device", "dtype", "expr_str", "field_names",
        "forward_arg_names", "fqn", "gradient_to_parameter", "gradient_to_user_input", "graph",
        "graph_module", "guards_code", "hint", "imag", "in_spec", "index", "input_specs", "inputs",
        "is_hop_single_tensor_return", "is_param", "is_single_tensor_return", "kind", "layout",
        "loss_output", "major", "max_val", "metadata", "min_val", "minor", "module_call_graph", "name",
        "nodes", "opset_version", "out_spec", "output_specs", "outputs", "parameter",
        "parameter_mutation", "parameter_name", "path_name", "persistent", "range_constraints", "real",
        "requires_grad", "schema_version", "signature", "sizes", "storage_offset", "strides",
        "sym_bool_values", "sym_float_values", "sym_int_values", "target", "tensor_constant",
        "tensor_constant_name", "tensor_meta", "tensor_values", "token", "torch_version",
        "treespec_namedtuple_fields", "type", "use_pickle", "user_input", "user_input_mutation",
        "user_input_name", "user_output", "value", "verifiers",
    }
)  # fmt: skip


def check_version(version: Any) -> None:
    """Refuse a program of a schema whose major version is not known; a minor one only adds fields.

    Args:
        version: the field ``schema_version`` of the program; None where it has none.

    Raises:
        ArtifactError: the version is not known.
    """
    major, minor = (version.get(key) if isinstance(version, dict) else None for key in ("major", "minor"))
    if version is None or major in {known for known, _ in VERSIONS}:
        return
    raise ArtifactError(
        "The program is written in a schema that is not known here.",
        expected=f"schema {_in_words()}",
        got=f"schema {major}.{minor}",
        remedy="upgrade torchquilt, or save the program with a torch that is known",
    )


def check_is_ignored(name: str, where: str) -> None:
    """Refuse a field that is not known here, unless the installed torch does not read it, either.

    Args:
        name: of a field that is none of :data:`FIELDS`.
        where: for errors.

    Raises:
        ArtifactError: the installed torch reads it.
    """
    if name not in torch_private.schema_fields():
        return
    import torch

    raise ArtifactError(
        f"There is a field in {where} that is not known here, and that the installed torch reads.",
        expected=f"fields of schema {_in_words()}",
        got=f"{name!r}, with torch {torch.__version__}",
        remedy="upgrade torchquilt; if you trust its origin, torch.export.load reads it without checks",
    )


def _in_words() -> str:
    return ", ".join(f"{major}.{minor} (torch {torch})" for (major, minor), torch in sorted(VERSIONS.items()))
