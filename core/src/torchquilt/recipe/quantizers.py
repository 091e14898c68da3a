"""Values into quantizers, and back. Importing this module imports torch, but no plugin."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Literal

from torchquilt.errors import IntentError, RecipeError, did_you_mean
from torchquilt.plugins import registry
from torchquilt.quantizers.base import Quantizer, as_quantizer
from torchquilt.quantizers.composable import ComposableQuantizer
from torchquilt.quantizers.pattern_quantizer import PatternQuantizer
from torchquilt.recipe.sections import FLOAT, Parts, RecipePart, RecipeRule, with_torch, without_torch
from torchquilt.recipe.source_location import SourceLocation
from torchquilt.recipe.toml_writer import write
from torchquilt.spec.config import QuantizationConfig
from torchquilt.support.object_type import ObjectType, attribute_at

# --- Making -------------------------------------------------------------------------------------------------


def make(parts: Parts) -> ComposableQuantizer:
    """The quantizers that a recipe asks for."""
    return ComposableQuantizer(make(part) if isinstance(part, tuple) else _make(part) for part in parts)


def _make(part: RecipePart) -> Quantizer:
    with part.location.at("backend").blamed():
        made = registry.quantizer(part.backend, distribution=part.distribution)
    if not isinstance(made, PatternQuantizer):
        return _make_without_rules(part, made)
    return _with_rules(part, made)


def _with_rules(part: RecipePart, made: PatternQuantizer) -> PatternQuantizer:
    """The new quantizer with the rules of the part."""
    decided: set[object] = set()
    for rule in part.rules:
        subject: object = rule.name
        about: object = (rule.kind, rule.name)
        if rule.kind in ("type", "class"):
            with rule.location.at(rule.name_key).blamed():
                subject = _subject(rule.kind, rule.name)
                about = _type(made, subject)
        if about in decided:
            raise rule.location.error(
                f"There are two rules about the {rule.kind} {rule.name!r}.",
                expected="one",
                got="another one above, maybe by another name of the type",
                remedy="remove one of them",
            )
        decided.add(about)
        _ask(made, rule, subject)
    return made


def _make_without_rules(part: RecipePart, made: Quantizer) -> Quantizer:
    """A backend that does not work from a table and rules takes a preset, at most."""
    for rule in part.rules:
        if rule.kind != "global" or not isinstance(rule.config, str):
            raise rule.location.error(
                f"The backend {part.backend!r} takes no rules, only presets.",
                quantizer=part.backend,
                expected="global = the name of a preset, or nothing",
                remedy="remove the rule",
            )
        with rule.location.blamed():
            made = registry.quantizer(part.backend, rule.config, distribution=part.distribution)
    return made


def _subject(kind: str, name: str) -> object:
    """Something that ``set_object_type`` takes for the type of this name."""
    if kind == "class":
        # Rules know a class by its name alone, so any of that name will do: nothing of the user is imported.
        module, _, last = name.rpartition(".")
        return type("Stand-in", (), {"__module__": module, "__qualname__": last})
    return name


def _type(made: PatternQuantizer, subject: object) -> ObjectType:
    """Object type that the quantizer, which is left as it is, takes a subject for."""
    return copy.copy(made).set_object_type(subject, None).intent.type_rules[-1].type


def _ask(made: PatternQuantizer, rule: RecipeRule, subject: object) -> None:
    with rule.config_location.blamed():
        config = _config(made, rule.config)
        if rule.kind == "global":
            made.set_global(config)
        elif rule.kind == "module":
            made.set_module_name(rule.name, config)
        else:
            made.set_object_type(subject, config)


def _config(made: PatternQuantizer, asked: QuantizationConfig | str | None) -> QuantizationConfig | None:
    if not isinstance(asked, str):
        return None if asked is None else with_torch(asked)
    if asked not in made.PRESETS:
        raise IntentError(
            f"{made.name} has no preset {asked!r}.",
            quantizer=made.name,
            expected=" | ".join([*made.PRESETS, FLOAT]),
            got=asked,
            remedy=did_you_mean(asked, (*made.PRESETS, FLOAT)),
        )
    return made.PRESETS[asked]()


# --- Describing ---------------------------------------------------------------------------------------------


def describe(quantizer: object) -> Parts:
    """The parts of the recipe that makes an equal quantizer; one that is no composition is the only part."""
    found = as_quantizer(quantizer)
    quantizers = found.quantizers if type(found) is ComposableQuantizer else (found,)
    return _describe(quantizers, registry.backends(), SourceLocation())


def _describe(
    quantizers: tuple[Quantizer, ...], backends: registry.Backends, location: SourceLocation
) -> Parts:
    parts: list[RecipePart | Parts] = []
    for index, quantizer in enumerate(quantizers):
        spot = location.at("quantizer", index)
        # A class that derives from it may do something else, which would be lost.
        if type(quantizer) is ComposableQuantizer:
            parts.append(_describe(quantizer.quantizers, backends, spot))
        else:
            parts.append(_describe_part(quantizer, backends, spot))
    return tuple(parts)


def _describe_part(quantizer: Quantizer, backends: registry.Backends, location: SourceLocation) -> RecipePart:
    backend = next((backend for backend in backends if _class_of(backend) is type(quantizer)), None)
    if backend is None or not isinstance(quantizer, PatternQuantizer):
        raise location.error(
            f"{quantizer.name} cannot be written: it is no pattern quantizer of an installed backend.",
            quantizer=quantizer.name,
            expected="a PatternQuantizer of " + ", ".join(backend.name for backend in backends),
            got=repr(quantizer),
            remedy="leave it out, and compose it with what recipe.quantizer() makes",
        )
    distribution = backend.distribution if backend.status == "duplicate" else None
    part = RecipePart(backend.name, tuple(_rules(quantizer, location)), distribution, location)
    with contextlib.suppress(RecipeError):
        if _make(part) == quantizer:
            return part
    raise location.error(
        f"{quantizer.name} cannot be written: it has more to it than rules about types and modules.",
        quantizer=backend.name,
        expected="no filter function, which is code, and the support table and first rules of the backend",
        got=repr(quantizer),
        remedy="set_filter_function(None), and set it again on what recipe.quantizer() makes",
    )


def intent_of(quantizer: object) -> str | None:
    """The recipe of a quantizer as text, without a look at what is installed.

    A table is taken to be that of the plugin which has its name. So reading the text makes an equal quantizer
    wherever the plugins are installed that it was made with.

    Returns:
        None where there is more to a quantizer than a recipe can say: code of the user's own.
    """
    found = as_quantizer(quantizer)
    try:
        parts = tuple(map(_intent_of, found.quantizers if type(found) is ComposableQuantizer else (found,)))
    except RecipeError:
        return None
    return write(parts)


def _intent_of(quantizer: Quantizer) -> RecipePart | Parts:
    if type(quantizer) is ComposableQuantizer:
        return tuple(map(_intent_of, quantizer.quantizers))
    # A class that derives from a backend's may do something else, which would be lost.
    if isinstance(quantizer, PatternQuantizer) and vars(type(quantizer)).get("TABLE") is not None:
        part = RecipePart(quantizer.table.backend, tuple(_rules(quantizer, SourceLocation())))
        with contextlib.suppress(TypeError):  # it cannot be made without arguments
            if _with_rules(part, type(quantizer)()) == quantizer:
                return part
    raise RecipeError(f"{quantizer.name} cannot be written.", quantizer=quantizer.name)


def _class_of(backend: registry.Backend) -> object:
    """The class of a backend, if it is loaded, which it is where there is an instance."""
    if backend.manifest is None or backend.manifest.quantizer is None:
        return None
    module, _, path = backend.manifest.quantizer.partition(":")
    return attribute_at(sys.modules.get(module), path.split("."))


def _rules(quantizer: PatternQuantizer, location: SourceLocation) -> Iterator[RecipeRule]:
    presets = [(name, make_config()) for name, make_config in quantizer.PRESETS.items()]

    def written(config: QuantizationConfig | None) -> QuantizationConfig | str | None:
        if config is None:
            return None
        return next((name for name, preset in presets if preset == config), without_torch(config))

    intent = quantizer.intent
    if intent.global_rule is not None:
        yield RecipeRule("global", "", written(intent.global_rule.config), location.at("global"))
    for index, about_type in enumerate(intent.type_rules):
        kind, name = _name_of(quantizer, about_type.type)
        yield RecipeRule(kind, name, written(about_type.config), location.at("type", index))
    for index, about_name in enumerate(intent.name_rules):
        yield RecipeRule("module", about_name.name, written(about_name.config), location.at("module", index))


def _name_of(quantizer: PatternQuantizer, meant: ObjectType) -> tuple[Literal["type", "class"], str]:
    """The shortest of the names that are read as this type again."""
    is_of_torch = meant.name.startswith("torch.nn.modules.")
    shorter = [f"torch.nn.{meant.name.rpartition('.')[2]}"] if is_of_torch else []
    for name in (*shorter, meant.name, f"torch.ops.{meant.name}"):
        with contextlib.suppress(IntentError):
            if _type(quantizer, _subject("type", name)) == meant:
                return "type", name
    return "class" if meant.kind == "module" else "type", meant.name
