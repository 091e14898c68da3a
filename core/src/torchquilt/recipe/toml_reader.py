"""TOML into values, with all checks that need no backend. Importing this module does not import torch."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import attrs

from torchquilt.errors import RecipeError
from torchquilt.recipe.sections import FLOAT, SCHEMA, Parts, RecipePart, RecipeRule
from torchquilt.recipe.source_location import SourceLocation
from torchquilt.spec.config import ROLES, QuantizationConfig
from torchquilt.spec.dtypes import NamedDtype, dtype_name
from torchquilt.spec.qspec import QuantizationSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read(text: str, file: str | None) -> Parts:
    """The parts of the recipe that a text is."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError, too, for a number with too many digits
        found = re.search(r"at line (\d+)", str(error))
        last = text.rstrip().count("\n") + 1 if "end of document" in str(error) else None
        raise RecipeError(
            "The recipe is not valid TOML.",
            file=file,
            line=int(found[1]) if found else last,
            got=str(error),
            remedy="mend that line; texts stand in quotes, and a key may be given only once",
        ) from error
    location = SourceLocation(file, text)
    # The schema comes first: another one may have keys that this one does not know.
    _check_schema(document.get("schema"), location)
    table = _table(document, location, needed=("schema", "quantizer"))
    return _parts(table["quantizer"], location.at("quantizer"))


def _check_schema(schema: object, location: SourceLocation) -> None:
    if type(schema) is int and schema == SCHEMA:
        return
    is_newer = isinstance(schema, int) and schema > SCHEMA
    raise (location if schema is None else location.at("schema")).error(
        "The recipe does not have the format that this torchquilt reads.",
        expected=f"schema = {SCHEMA}",
        got="no schema" if schema is None else f"schema = {_shown(schema)}",
        remedy="pip install --upgrade torchquilt" if is_newer else f"write schema = {SCHEMA} at the top",
    )


def _parts(value: object, location: SourceLocation) -> Parts:
    return tuple(_part(item, spot) for item, spot in _items(value, location))


def _part(value: object, location: SourceLocation) -> RecipePart | Parts:
    if isinstance(value, dict) and "quantizer" in value:
        return _parts(_table(value, location, needed=("quantizer",))["quantizer"], location.at("quantizer"))
    table = _table(value, location, ("backend",), ("distribution", "global", "type", "module"))
    backend = _checked(table["backend"], location.at("backend"), str)
    distribution = table.get("distribution")
    if distribution is not None:
        _checked(distribution, location.at("distribution"), str)
    return RecipePart(backend, tuple(_rules(table, location)), distribution, location)


def _rules(table: dict[str, Any], location: SourceLocation) -> Iterator[RecipeRule]:
    if "global" in table:
        spot = location.at("global")
        yield RecipeRule("global", "", _config(table["global"], spot), spot)
    for item, spot in _items(table.get("type", []), location.at("type")):
        is_class = isinstance(item, dict) and "class" in item
        yield _rule("class" if is_class else "type", item, spot)
    for item, spot in _items(table.get("module", []), location.at("module")):
        yield _rule("module", item, spot)


def _rule(kind: Any, value: object, location: SourceLocation) -> RecipeRule:
    name = "class" if kind == "class" else "name"
    table = _table(value, location, needed=(name, "config"))
    config = _config(table["config"], location.at("config"))
    return RecipeRule(kind, _checked(table[name], location.at(name), str), config, location)


def _config(value: object, location: SourceLocation) -> QuantizationConfig | str | None:
    if isinstance(_checked(value, location, str, dict), str):
        return None if value == FLOAT else str(value)
    table = _table(value, location, optional=(*ROLES, "is_qat"))
    specs = {role: _spec(table[role], location.at(role)) for role in ROLES if role in table}
    is_qat = _checked(table.get("is_qat", False), location.at("is_qat"), bool)
    with location.blamed():
        return QuantizationConfig(**specs, is_qat=is_qat)


def _spec(value: object, location: SourceLocation) -> QuantizationSpec:
    fields = attrs.fields(QuantizationSpec)
    table = _table(value, location, needed=("dtype",), optional=tuple(field.name for field in fields))
    for field in fields:
        # The spec checks the rest by itself, but takes anything for true or false.
        if isinstance(field.default, bool) and field.name in table:
            _checked(table[field.name], location.at(field.name), bool)
    with location.blamed():
        return QuantizationSpec(**{**table, "dtype": NamedDtype(dtype_name(table["dtype"]))})


def _items(value: object, location: SourceLocation) -> Iterator[tuple[object, SourceLocation]]:
    for index, item in enumerate(_checked(value, location, list)):
        yield item, location.at(index)


def _table(
    value: object, location: SourceLocation, needed: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The value as a table that has the keys that are needed, and no others than these and the optional."""
    table: dict[str, Any] = _checked(value, location, dict)
    known = tuple(dict.fromkeys((*needed, *optional)))
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=2)
            raise location.at(key).error(
                f"There is no key {_shown(key)} here.",
                expected=" | ".join(known),
                got=key,
                remedy=f"did you mean {' or '.join(near)}?" if near else "use one of these",
            )
    for key in needed:
        if key not in table:
            got = f"only {', '.join(table)}" if table else "nothing"
            raise location.at(key).error(f"The key {_shown(key)} is missing.", expected=key, got=got)
    return table


#: What TOML calls a value of each type.
_KINDS: dict[type, str] = {
    str: "a text in quotes",
    bool: "true or false",
    dict: "a table",
    list: "an array of tables (in double brackets)",
}


def _checked(value: object, location: SourceLocation, *kinds: type) -> Any:
    """The value, if it has one of these types."""
    if not isinstance(value, kinds):
        expected = " or ".join(_KINDS[kind] for kind in kinds)
        raise location.error(f"This has to be {expected}.", expected=expected, got=_shown(value))
    return value


def _shown(value: object) -> str:
    """A value as it stands in a file, or what it is where that would be long."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "an array"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
