"""The values that a recipe consists of. Importing this module does not import torch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs

from torchquilt.recipe.source_location import SourceLocation
from torchquilt.spec.config import ROLES, QuantizationConfig
from torchquilt.spec.dtypes import NamedDtype, dtype_name

#: The number of the format.
SCHEMA = 1

#: The config that leaves in float: TOML has no null.
FLOAT = "float"


@attrs.frozen
class RecipeRule:
    """One rule of a quantizer.

    Args:
        kind: what it is about: everything (``global``), what comes from something that torch has (``type``)
            or from a class of the user's own (``class``), or a module of the model (``module``).
        name: of the type, the class or the module; empty for ``global``.
        config: what is asked there: a config (see :func:`without_torch`), the name of a preset, or None to
            leave in float.
        location: where it was read. It takes no part in comparisons.
    """

    kind: Literal["global", "type", "class", "module"]
    name: str
    config: QuantizationConfig | str | None
    location: SourceLocation = attrs.field(default=SourceLocation(), eq=False, repr=False)

    @property
    def name_key(self) -> str:
        """The key of the name."""
        return "class" if self.kind == "class" else "name"

    @property
    def config_location(self) -> SourceLocation:
        """Location from which the config was read."""
        return self.location if self.kind == "global" else self.location.at("config")


@attrs.frozen
class RecipePart:
    """A backend and what is asked of it.

    Args:
        backend: its name, as :func:`torchquilt.quantizer` takes it.
        rules: the global one if there is one, then those about types and those about modules, in their order.
        distribution: the package to take it from, where several have a backend of that name.
        location: where it was read. It takes no part in comparisons.
    """

    backend: str
    rules: tuple[RecipeRule, ...] = ()
    distribution: str | None = None
    location: SourceLocation = attrs.field(default=SourceLocation(), eq=False, repr=False)


#: What is composed, in order of precedence; a tuple in it is a composition inside of the composition.
Parts: TypeAlias = "tuple[RecipePart | Parts, ...]"


def without_torch(config: QuantizationConfig) -> QuantizationConfig:
    """The config as recipes hold it: its dtypes are stand-ins."""
    return _with_dtypes(config, NamedDtype)


def with_torch(config: QuantizationConfig) -> QuantizationConfig:
    """The config as quantizers take it: its dtypes are those of torch, which is imported."""
    return _with_dtypes(config, str)


def _with_dtypes(config: QuantizationConfig, dtype: type[NamedDtype] | type[str]) -> QuantizationConfig:
    specs = {role: spec for role in ROLES if (spec := config.spec(role)) is not None}
    changed: dict[str, Any] = {
        role: attrs.evolve(spec, dtype=dtype(dtype_name(spec.dtype))) for role, spec in specs.items()
    }
    return attrs.evolve(config, **changed)
