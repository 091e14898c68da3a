"""Frozen values as JSON, and back. Importing this module does not import torch.

The fields of a class say how it is written and read; ``cattrs`` goes through them. Texts and numbers are
taken as they are and never converted: what has a text where a size belongs is damaged, or something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from cattrs import Converter
from cattrs.errors import ForbiddenExtraKeysError

from torchquilt.errors import TorchquiltError

_T = TypeVar("_T")

_PLAIN = frozenset({bool, int, float, str, NoneType})
#: Errors of reading data that is not that of a value.
NOT_SUCH_VALUES = (ValueError, KeyError, TypeError, AttributeError, ForbiddenExtraKeysError)


def to_plain(value: Any) -> Any:
    """A value as dicts, lists, texts and numbers."""
    return _CONVERTER.unstructure(value)


def from_plain(kind: type[_T], data: Any) -> _T:
    """The inverse of :func:`to_plain`. A field that is missing has its default.

    Raises:
        One of NOT_SUCH_VALUES: it is the data of something else.
    """
    return _CONVERTER.structure(data, kind)


def with_new_names(data: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a value under the names of today.

    Args:
        data: as an earlier torchquilt wrote it, or this one.
        names: names that it had then → of today.
    """
    return {names.get(name, name): value for name, value in data.items()}


def parsed(text: str, what: str, error: type[TorchquiltError]) -> Any:
    """Parse JSON text.

    Args:
        text: the JSON.
        what: of what it is, as in "JSON of a ledger".
        error: raised where it is something else.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as caught:
        raise _not_json_of(what, error, caught) from caught


def from_document(
    data: Any, schema: int, what: str, error: type[TorchquiltError], read: Callable[[dict[str, Any]], _T]
) -> _T:
    """Read data that has a schema version.

    Args:
        data: a dict with the version as ``schema``.
        schema: the version that this torchquilt reads.
        what: as for :func:`parsed`.
        error: raised where it is of another version, or where ``read`` raises one of NOT_SUCH_VALUES.
        read: makes the value of what stands beside the version.
    """
    try:
        found = data["schema"]
        if found == schema:
            return read({name: value for name, value in data.items() if name != "schema"})
    except TorchquiltError:
        raise
    except NOT_SUCH_VALUES as caught:
        raise _not_json_of(what, error, caught) from caught
    raise error(
        f"This JSON of {what} is of another schema version.",
        expected=schema,
        got=found,
        remedy="read it with the torchquilt that wrote it",
    )


def _not_json_of(what: str, error: type[TorchquiltError], cause: Exception) -> TorchquiltError:
    return error(f"This is not JSON of {what}.", got=f"{type(cause).__name__}: {cause}")


def _is_plain(kind: Any) -> bool:
    """Whether a type is a union of texts and numbers, or a choice of them."""
    is_union = get_origin(kind) in (Union, UnionType) and _PLAIN.issuperset(get_args(kind))
    return is_union or get_origin(kind) is Literal


def _as_it_is(value: Any, kind: Any) -> Any:
    if not _takes(kind, value):
        raise TypeError(f"{value!r} is not of the type {getattr(kind, '__name__', kind)}")
    return value


def _takes(kind: Any, value: Any) -> bool:
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return value in choices
    # JSON has one kind of number, so a whole one stands for a real one, too.
    is_real = float in (kind, *choices) and isinstance(value, int)
    return is_real or isinstance(value, kind)


_CONVERTER = Converter(
    detailed_validation=False, forbid_extra_keys=True, unstruct_collection_overrides={tuple: list}
)
_CONVERTER.register_structure_hook_func(_is_plain, _as_it_is)
# cattrs asks for hooks of classes before it asks the function.
for _kind in _PLAIN:
    _CONVERTER.register_structure_hook(_kind, _as_it_is)
