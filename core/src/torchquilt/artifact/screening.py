"""Refusing a saved program that could run code when torch reads it.

``torch.export.load`` trusts its file. As of torch 2.13 it runs code from it in these ways, which tests
show at work:

- pickles: example inputs (tried with ``weights_only`` first, then without), tensors and constants that say
  ``use_pickle``, objects, and the entries of older formats;
- text that is evaluated: symbolic sizes (``sympy.sympify``), guards and the keys of inputs in them, and every
  name that ends up in the Python code that ``torch.fx`` writes for a graph;
- imports: the default factory of a ``defaultdict`` and the enum keys of a dict in the structure of inputs;
- shared libraries: compiled models (``data/aotinductor``).

So a file is read here first, entry by entry, and only what is known to be harmless passes. A field that is
not known here passes where the installed torch has no field of that name, since it does not read it then.
What passes may still be too big for the machine, and what the operators do with their inputs is the program's
business.

Importing this module does not import torch.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torchquilt._internal import torch_private
from torchquilt.artifact import known_schemas
from torchquilt.artifact.archive import LOCK_ENTRY, PROGRAM_ENTRY
from torchquilt.errors import ArtifactError

#: Where torch keeps what tensors lie in which entry.
PAYLOAD_ENTRIES = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
INPUTS_ENTRY = "data/sample_inputs/model.pt"

_ENTRY = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+|\.data/\w+")
_ENTRIES = {
    PROGRAM_ENTRY,
    INPUTS_ENTRY,
    LOCK_ENTRY,
    *PAYLOAD_ENTRIES.values(),
    "archive_format",
    "archive_version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
}
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")


def check_entries(names: Iterable[str]) -> None:
    """Refuse entries that a saved program of tensors does not have.

    Raises:
        ArtifactError: there is one.
    """
    strange = sorted(name for name in names if name not in _ENTRIES and not _ENTRY.fullmatch(name))
    if strange:
        raise _unsafe("an entry", strange[0], "a program, plain tensors and a lock", "the archive")


def check_payloads(text: bytes) -> dict[str, str]:
    """Refuse tensors that are pickled.

    Args:
        text: the JSON in which torch says where each tensor lies.

    Returns:
        Name of each tensor → file that holds it.

    Raises:
        ArtifactError: one is pickled, or the text is not such JSON.
    """
    config = _parsed(text).get("config")
    if not isinstance(config, dict):
        raise _unsafe("a list of tensors", repr(config), "a table by name", "the archive")
    for name, row in config.items():
        _check_plain_text(name, "the names of tensors")
        if not isinstance(row, dict) or row.get("use_pickle") is not False:
            raise _unsafe("a pickle", name, "tensors as plain bytes", "the list of tensors")
        if not isinstance(row.get("path_name"), str) or not _PAYLOAD.fullmatch(row["path_name"]):
            raise _unsafe(
                "a file name", repr(row.get("path_name")), "weight_0, tensor_0 …", "the list of tensors"
            )
        _check(row, "", f"tensor {name}", False)
    return {name: row["path_name"] for name, row in config.items()}


def check_inputs(pickled: bytes) -> None:
    """Refuse example inputs that are more than tensors, numbers and texts in lists and dicts.

    Raises:
        ArtifactError: they hold something that only running code can make.
    """
    import torch

    if not pickled:
        return
    where = "the example inputs"
    try:
        inputs = torch.load(io.BytesIO(pickled), weights_only=True)
    except Exception as error:  # whatever a hostile pickle brings about
        text = str(error).strip().partition("\n")[0]
        raise _unsafe("a pickle", text, "what torch.load takes with weights_only", where) from error
    _check_keys(inputs, where)


def _check_keys(value: Any, where: str) -> None:
    """The keys of inputs that are dicts: torch writes them into the messages of guards."""
    if isinstance(value, Mapping):
        for key in value:
            _check_plain_text(str(key), where)
    items = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    for item in items:
        _check_keys(item, where)


def check_program(text: bytes) -> None:
    """Refuse a program with text that torch would evaluate, or write into code, beyond names and arithmetic.

    Args:
        text: the JSON of the exported program.

    Raises:
        ArtifactError: there is such text, or the text is not such JSON.
    """
    try:
        data = _parsed(text)
        known_schemas.check_version(data.get("schema_version"))
        _check(data, "", "the program", False)
    except RecursionError as error:
        raise _unsafe("an entry", "JSON that is nested too deep", "a program", "the archive") from error


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unsafe("an entry", str(error), "JSON", "the archive") from error
    if not isinstance(data, dict):
        raise _unsafe("an entry", type(data).__name__, "a JSON object", "the archive")
    return data


# Fields that are dicts by name. Elsewhere the keys of a dict are names of fields, and only there a key says
# what its value is; a test compares this with torch's own schema.
NAMED = frozenset(
    {
        "as_string_to_argument",
        "config",
        "custom_obj_values",
        "opset_version",
        "range_constraints",
        "sym_bool_values",
        "sym_float_values",
        "sym_int_values",
        "tensor_values",
        "treespec_namedtuple_fields",
    }
)


def _check(value: Any, key: str, where: str, is_argument: bool) -> None:
    """Check a value that stands at a key.

    Args:
        value: JSON.
        key: the field that it is in; empty for an object of which nothing more is known.
        where: for errors.
        is_argument: whether it is an argument of an operator. Texts there are written into code quoted.
    """
    if key in _REFUSED and value:
        raise _unsafe("a custom object", repr(value)[:80], "plain tensors", where)
    if isinstance(value, str):
        if not (is_argument and key in ("as_string", "as_strings")):
            _RULES.get(key, _refuse_text)(value, where)
    elif isinstance(value, list):
        for item in value:
            _check(item, key, where, is_argument)
    elif isinstance(value, dict):
        if isinstance(value.get("target"), str) and key == "nodes":
            where = f"the node {value.get('name') or value['target']}"
        for name, item in value.items():
            _check_plain_text(name, where)
            if key in NAMED:
                _check(item, "", where, is_argument)
            elif name == "metadata":
                _check_metadata(item, where)
            elif name not in known_schemas.FIELDS:
                known_schemas.check_is_ignored(name, where)
            else:
                _check(item, name, where, name == "arg" or (is_argument and name != "graph"))


def _check_metadata(value: Any, where: str) -> None:
    """Notes for people (stack traces and such): texts by name, which torch keeps and does not evaluate."""
    if not isinstance(value, dict) or not all(isinstance(note, str) for note in value.values()):
        raise _unsafe("notes", repr(value)[:80], "texts by name", where)


def _check_plain_text(text: str, where: str) -> None:
    # torch.fx writes names between double quotes, and constant inputs between single ones.
    if not (text.isprintable() or not text) or any(mark in text for mark in "\"'\\"):
        raise _unsafe("a text", repr(text)[:80], "printable, without quotes and backslashes", where)


def _refuse_text(text: str, where: str) -> None:
    raise _unsafe("a text", repr(text)[:80], "a number, or a field that is known", where)


def _check_number(text: str, where: str) -> None:
    if text not in ("Infinity", "-Infinity", "NaN"):
        raise _unsafe("a text", repr(text)[:80], "a number", where)


def _check_identifier(text: str, where: str) -> None:
    if text and not text.isidentifier():
        raise _unsafe("a name", repr(text)[:80], "a Python identifier", where)


# ----------------------------------------------------------------------------------------------------------
# Operators
# ----------------------------------------------------------------------------------------------------------

# Functions of Python and of torch that torch.export puts into graphs, beside operators.
_PYTHON_OPERATORS = {
    "abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "invert", "le", "lshift", "lt", "mod",
    "mul", "ne", "neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv", "xor",
}  # fmt: skip
_TORCH_FUNCTION = re.compile(
    r"_operator\.(?P<operator>\w+)"
    r"|math\.(ceil|floor|trunc|sqrt|cos|cosh|sin|sinh|tan|tanh|acos|asin|atan|exp|log|log2|pow)"
    r"|torch\.(sym_(float|int|ite|max|min|not|sqrt|sum|fresh_size)|_sym_(sqrt|cos|cosh|sin|sinh|tan|tanh|log2))"
    r"|torch\._C\._set_grad_enabled"
    r"|torch\.autograd\.grad_mode\.set_grad_enabled"
    r"|torch\.amp\.autocast_mode\._(enter|exit)_autocast"
    r"|torch\._functorch\.predispatch\._(add_batch_dim|remove_batch_dim|vmap_(in|de)crement_nesting|make_dual"
    r"|unpack_dual|jvp_(in|de)crement_nesting|unwrap_for_grad|(enter|exit)_dual_level)"
    r"|torch\._functorch\.predispatch\.lazy_load_decompositions"
)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(\.\w+)?")


def _check_operator(text: str, where: str) -> None:
    function = _TORCH_FUNCTION.fullmatch(text)
    if function is not None and function["operator"] in {None, *_PYTHON_OPERATORS}:
        return
    if not _OPERATOR.fullmatch(text):
        raise _unsafe("a function", repr(text)[:80], "an operator of torch.ops, or arithmetic", where)
    import torch

    found: Any = torch.ops
    for name in text.split(".")[2:]:
        found = getattr(found, name, None)
    if not isinstance(found, (torch_private.OpOverload, torch_private.HigherOrderOperator)):
        raise ArtifactError(
            "The program calls an operator that is not known here.",
            expected="operators that are registered in this process",
            got=f"{text} at {where}",
            remedy="import the package that defines it, then load again",
        )


# ----------------------------------------------------------------------------------------------------------
# Expressions
# ----------------------------------------------------------------------------------------------------------

_ARITHMETIC = (
    ast.Expression, ast.Load, ast.Name, ast.Constant, ast.Call, ast.keyword, ast.Tuple,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
# The classes of sympy, and those that torch adds to it, of which symbolic sizes are made.
_SIZE_FUNCTIONS = {
    "Abs", "Add", "And", "BooleanFalse", "BooleanTrue", "CeilDiv", "CeilToInt", "CleanDiv", "Eq",
    "Equality", "ExprCondPair", "Float", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge",
    "GreaterThan", "Gt", "Half", "Identity", "IntTrueDiv", "Integer",
    "IsNonOverlappingAndDenseIndicator", "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod",
    "ModularIndexing", "Mul", "Ne", "Not", "Or", "Piecewise", "Pow", "PowByNatural", "PythonMod",
    "RShift", "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan",
    "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where", "Xor", "ceiling",
    "floor", "sqrt",
}  # fmt: skip
_SIZE_TEXT = re.compile(r"\w+|[-+]?[\d.]+(e[-+]?\d+)?")
_GUARD_FUNCTIONS = frozenset(
    {"abs", "bool", "cast_symbool_to_symint_guardless", "float", "int", "IsNonOverlappingAndDenseIndicator"}
    | {"max", "min", "round"}
)
_GUARD_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "ndimension", "numel"})


def _check_size(text: str, where: str) -> None:
    """A symbolic size, as ``sympy.srepr`` writes it: ``Mul(Integer(2), Symbol('s0', integer=True))``."""
    for part in ast.walk(_syntax(text, where)):
        if isinstance(part, ast.Call):
            known = isinstance(part.func, ast.Name) and part.func.id in _SIZE_FUNCTIONS
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            known = _SIZE_TEXT.fullmatch(part.value) is not None  # sympy evaluates texts, too
        else:
            known = isinstance(part, _ARITHMETIC)
        if not known:
            raise _unsafe("an expression", repr(text)[:80], "arithmetic of sizes", where)


def _check_guard(text: str, where: str) -> None:
    """A condition on the inputs: ``L['x'].size()[0] <= 32``."""
    for part in ast.walk(_syntax(text, where)):
        if isinstance(part, ast.Call):
            known = _is_guard_call(part.func)
        elif isinstance(part, ast.Attribute):
            known = not part.attr.startswith("_")
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            _check_plain_text(part.value, where)
            known = True
        else:
            known = isinstance(part, (*_ARITHMETIC, ast.Subscript, ast.IfExp))
        if not known:
            raise _unsafe("an expression", repr(text)[:80], "a comparison of sizes of the inputs", where)


def _is_guard_call(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _GUARD_FUNCTIONS
    if not isinstance(function, ast.Attribute):
        return False
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    if owner == "math":
        return True
    if owner == "torch":
        return function.attr.startswith("sym_")
    return function.attr in _GUARD_METHODS


def _syntax(text: str, where: str) -> ast.Expression:
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unsafe("an expression", repr(text)[:80], "arithmetic", where) from error


# ----------------------------------------------------------------------------------------------------------
# The structure of inputs and outputs
# ----------------------------------------------------------------------------------------------------------

_FACTORIES = {"bool", "dict", "float", "int", "list", "set", "str", "tuple"}


def _check_structure(text: str, where: str) -> None:
    """The nesting of outputs, as torch's pytrees write it."""
    _nesting(text, where)


def _check_input_structure(text: str, where: str) -> None:
    """That of inputs, positional and by keyword. The keywords become parameters of a function."""
    children = _nesting(text, where)["children_spec"]
    if len(children) == 2 and isinstance(children[1]["context"], str):
        names = json.loads(children[1]["context"])
        for name in names if isinstance(names, list) else ():
            _check_identifier(str(name) or "?", where)


def _nesting(text: str, where: str) -> dict[str, Any]:
    try:
        _, root = json.loads(text)
        _check_branch(root, where)
    except ArtifactError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unsafe("a structure", repr(text)[:80], "a tree of lists and dicts", where) from error
    found: dict[str, Any] = root
    return found


def _check_branch(branch: dict[str, Any], where: str) -> None:
    kind, context = branch["type"], branch["context"]
    if kind is not None:
        _check_plain_text(kind, where)
    if kind == "collections.defaultdict":
        if (
            context["default_factory_module"] != "builtins"
            or context["default_factory_name"] not in _FACTORIES
        ):
            raise _unsafe("a default factory", repr(context)[:80], "a builtin type", where)
    elif kind == "collections.namedtuple":
        _check_plain_text(context, where)  # the name that its class is registered by
    elif isinstance(context, str):
        _check_context(json.loads(context), where)
    for child in branch["children_spec"]:
        _check_branch(child, where)


def _check_context(context: Any, where: str) -> None:
    """Keys of a dict, fields of a class. torch imports the module of an enum that is among them."""
    if isinstance(context, dict):
        if "__enum__" in context:
            raise _unsafe("an import", repr(context)[:80], "texts and numbers as keys", where)
        for item in context.values():
            _check_context(item, where)
    elif isinstance(context, list):
        for item in context:
            _check_context(item, where)
    elif isinstance(context, str):
        _check_plain_text(context, where)


# What is known of fields by their names. Text in any other field is refused.
_RULES: dict[str, Callable[[str, str], None]] = {
    "name": _check_identifier,
    "as_name": _check_identifier,
    "forward_arg_names": _check_identifier,
    "target": _check_operator,
    "as_operator": _check_operator,
    "expr_str": _check_size,
    "guards_code": _check_guard,
    "in_spec": _check_input_structure,
    "out_spec": _check_structure,
    **dict.fromkeys(("as_float", "as_floats", "as_float_lists", "real", "imag"), _check_number),
    **dict.fromkeys(
        (
            *(
                "as_string",
                "as_strings",
                "type",
                "fqn",
                "path_name",
                "torch_version",
                "verifiers",
                "field_names",
            ),
            *("parameter_name", "buffer_name", "tensor_constant_name", "user_input_name"),
        ),
        _check_plain_text,
    ),
}
_REFUSED = {"as_custom_obj", "class_fqn", "custom_obj", "custom_obj_name", "custom_obj_values"}


def _unsafe(what: str, got: str, expected: str, where: str) -> ArtifactError:
    return ArtifactError(
        f"There is {what} in {where} that could run code when torch reads it.",
        expected=expected,
        got=got,
        remedy="if you trust where it comes from, torch.export.load reads it without these checks",
    )
