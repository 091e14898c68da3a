"""Values into TOML. Equal values give the same text. Importing this module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs

from torchquilt.recipe.sections import FLOAT, SCHEMA, Parts, RecipeRule
from torchquilt.spec.config import ROLES, QuantizationConfig
from torchquilt.spec.dtypes import dtype_name
from torchquilt.spec.qspec import QuantizationSpec


def write(parts: Parts) -> str:
    """The text that is read as these parts."""
    lines = [
        "# What is quantized, by which backend. The first quantizer to claim a node keeps it.",
        f"schema = {SCHEMA}",
        *_parts(parts, "quantizer"),
    ]
    return "\n".join(lines) + "\n"


def _parts(parts: Parts, table: str) -> Iterator[str]:
    if not parts:
        yield "quantizer = []"
    for part in parts:
        yield from ("", f"[[{table}]]")
        if isinstance(part, tuple):
            yield from _parts(part, f"{table}.quantizer")
            continue
        yield f"backend = {_text(part.backend)}"
        if part.distribution is not None:
            yield f"distribution = {_text(part.distribution)}"
        for rule in part.rules:
            yield from _rule(rule, table)


def _rule(rule: RecipeRule, table: str) -> Iterator[str]:
    key = "global"
    if rule.kind != "global":
        table, key = f"{table}.{'type' if rule.kind == 'class' else rule.kind}", "config"
        yield from ("", f"[[{table}]]", f"{rule.name_key} = {_text(rule.name)}")
    if isinstance(rule.config, QuantizationConfig):
        yield from _config(rule.config, f"{table}.{key}")
    else:
        yield f"{key} = {_text(FLOAT if rule.config is None else rule.config)}"


def _config(config: QuantizationConfig, table: str) -> Iterator[str]:
    if config.is_qat:
        yield from ("", f"[{table}]", "is_qat = true")
    for role in ROLES:
        spec = config.spec(role)
        if spec is not None:
            yield from ("", f"[{table}.{role}]", *_fields(spec))


def _fields(spec: QuantizationSpec) -> Iterator[str]:
    for field in attrs.fields(QuantizationSpec):
        value = getattr(spec, field.name)
        if field.name == "dtype":
            value = dtype_name(value)
        if field.name == "eps":
            value = float(value)  # 1 and 1.0 are equal
        # A zero point can only be the one that symmetry implies, which making the spec fills in.
        if field.name != "zero_point" and value != field.default:
            yield f"{field.name} = {_text(value)}"


def _text(value: str | bool | int | float) -> str:
    """As JSON, whose texts and numbers mean the same in TOML, which only wants DEL escaped as well."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
