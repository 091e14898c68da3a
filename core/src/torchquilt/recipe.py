"""A recipe: the whole intent of a composition as TOML, which a person can write, read and compare.

::

    schema = 1

    [[quantizer]]                              # the first one to claim a node keeps it
    backend = "executorch_embedding"
    global = "byte_per_row"                    # a config: the name of a preset of the backend ...

    [[quantizer]]
    backend = "xnnpack"
    global = "dynamic_int8_per_channel"

    [[quantizer.type]]
    name = "torch.nn.Linear"                   # of torch: module class, functional or ATen operator

    [quantizer.type.config.input_activation]   # ... or spelled out: a spec for each role
    dtype = "int8"
    granularity = "per_token"
    is_dynamic = true

    [quantizer.type.config.weight]
    dtype = "int8"
    quant_min = -7
    quant_max = 7
    symmetric = true

    [[quantizer.type]]
    class = "my_model.layers.Block"            # a module class of your own, by its full name
    config = "float"                           # ... or "float": nothing is quantized there

    [[quantizer.module]]
    name = "head"
    config = "float"

A ``[[quantizer]]`` without a backend is a composition: its parts are ``[[quantizer.quantizer]]``. What a
backend asks for by itself stays, unless a rule says otherwise. A spec has the fields of
:class:`torchquilt.QuantizationSpec`, with the same defaults.

Loading checks all that the file says by itself, and imports neither torch nor a plugin. What depends on the
installed backends is checked when the quantizers are made. The errors of both name the line.

Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import importlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import attrs

from torchquilt.config import ROLES, QuantizationConfig
from torchquilt.errors import IntentError, RecipeError, SpecError, TorchquiltError
from torchquilt.plugins import registry
from torchquilt.spec import INTEGER_RANGES, Granularity, QuantizationSpec, ZeroPointDomain, dtype_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from torchquilt.compose import ComposableQuantizer
    from torchquilt.operators import ObjectType
    from torchquilt.quantizers import PatternQuantizer, Quantizer

#: The number of the format that this module reads and writes.
SCHEMA = 1

#: The config that leaves in float: TOML has no null.
FLOAT = "float"

_HEADING = "What is quantized, by which backend. The first quantizer to claim a node keeps it."


# --- What a recipe is ---------------------------------------------------------------------------------------

#: A spec as it is written: field → value.
SpecFields: TypeAlias = tuple[tuple[str, "bool | int | float | str"], ...]


@attrs.frozen
class SpelledConfig:
    """A config that is no preset, as plain values.

    Args:
        specs: role → spec, in the order of :data:`torchquilt.config.ROLES`. Of a spec, the fields that differ
            from their defaults, and always the dtype, its range and the granularity.
        is_qat: as in :class:`torchquilt.QuantizationConfig`.
    """

    specs: tuple[tuple[str, SpecFields], ...]
    is_qat: bool = False

    @classmethod
    def of(cls, config: QuantizationConfig) -> SpelledConfig:
        """The plain values of a config."""
        specs = ((role, config.spec(role)) for role in ROLES)
        fields = tuple((role, _fields_of(spec)) for role, spec in specs if spec is not None)
        return cls(fields, config.is_qat)

    def config(self) -> QuantizationConfig:
        """The config of these values. This imports torch, which defines the dtypes."""
        written: dict[str, dict[str, Any]] = {role: dict(fields) for role, fields in self.specs}
        specs: dict[str, Any] = {role: QuantizationSpec(**fields) for role, fields in written.items()}
        return QuantizationConfig(**specs, is_qat=self.is_qat)


#: What a rule asks for: the name of a preset, a config in full, or None to leave in float.
Asked: TypeAlias = str | SpelledConfig | None


@attrs.frozen
class RecipeRule:
    """One rule of a quantizer.

    Args:
        kind: what it is about: everything (``global``), what comes from something that torch has (``type``)
            or from a class of the user's own (``class``), or a module of the model (``module``).
        name: of the type, the class or the module; empty for ``global``.
        config: what is asked there.
    """

    kind: Literal["global", "type", "class", "module"]
    name: str
    config: Asked

    @property
    def array(self) -> str:
        """The key below which such rules are written."""
        return "type" if self.kind == "class" else self.kind


@attrs.frozen
class RecipePart:
    """A backend and what is asked of it.

    Args:
        backend: its name, as :func:`torchquilt.quantizer` takes it.
        rules: the global one if there is one, then those about types and those about modules, in their order.
        distribution: the package to take it from, where several have a backend of that name.
    """

    backend: str
    rules: tuple[RecipeRule, ...] = ()
    distribution: str | None = None


@attrs.frozen
class Recipe:
    """The whole intent of a composition, as a value. Made by :meth:`load`, :meth:`from_toml` or :meth:`of`.

    Two recipes are equal if they say the same: comments, the order of keys, and fields that are given their
    default make no difference. What only the backend could tell does: a preset by its name is not the same as
    spelled out, ``torch.nn.Linear`` not as ``nn.Linear``, nor a rule as the default of the backend that it
    repeats. :meth:`of` writes the first of each two, so ``Recipe.of(recipe.quantizer())`` brings any recipe
    into one form, and leaves one that is in this form as it is.

    Args:
        quantizers: in order of precedence; a recipe among them is a nested composition.
        origin: where it was read, for errors. It takes no part in comparisons.
    """

    quantizers: tuple[RecipePart | Recipe, ...]
    origin: Origin = attrs.field(factory=lambda: Origin(), eq=False, repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a file. Imports neither torch nor a plugin.

        Raises:
            RecipeError: the file cannot be read, is no TOML, or says something that no recipe can; it has
                the file, the line and the key.
        """
        file = os.fspath(path)
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise RecipeError(
                "The recipe cannot be read.",
                file=file,
                expected="a TOML file",
                got=f"{type(error).__name__}: {error.strerror}",
                remedy="check the path; Recipe.of(quantizer).save(path) writes one",
            ) from error
        try:
            # Some editors put a byte order mark at the start.
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecipeError(
                "The recipe is not UTF-8.",
                file=file,
                line=data.count(b"\n", 0, error.start) + 1,
                expected="a text file in UTF-8, as TOML demands",
                got=f"the byte 0x{data[error.start]:02x}",
                remedy="save it as UTF-8",
            ) from error
        return cls.from_toml(text, file=file)

    @classmethod
    def from_toml(cls, text: str, *, file: str | None = None) -> Recipe:
        """Read a recipe from text.

        Args:
            text: TOML.
            file: what errors call the text.

        Raises:
            RecipeError: as with :meth:`load`.
        """
        try:
            document = tomllib.loads(text)
            origin = Origin(file, locate(text))
        except (ValueError, RecursionError) as error:  # a ValueError, too, for a number with too many digits
            message = str(error)
            # The end of the document is the one place for which the parser gives no number.
            found = re.search(r"\(at line (\d+)", message)
            raise RecipeError(
                "The recipe is not valid TOML.",
                file=file,
                line=int(found[1]) if found else text.rstrip().count("\n") + 1,
                got=message,
                remedy="mend that line; texts stand in quotes, and a key may be given only once",
            ) from error
        return _read_recipe(document, Place(origin))

    @classmethod
    def of(cls, quantizer: object) -> Recipe:
        """The recipe that makes an equal quantizer; a quantizer that is no composition counts as one of one.

        A config that equals a preset of the backend is written as the name of the preset.

        Raises:
            RecipeError: a part of it cannot be written, so that reading would make another quantizer: a
                quantizer that no installed backend provides, a filter function, a table of its own.
            IntentError: it is no quantizer.
        """
        from torchquilt.compose import ComposableQuantizer
        from torchquilt.quantizers import as_quantizer

        found = as_quantizer(quantizer)
        whole = found if type(found) is ComposableQuantizer else ComposableQuantizer([found])
        return _describe(whole, registry.backends(), Place(Origin()))

    def quantizer(self) -> ComposableQuantizer:
        """Make the quantizers. Loads the plugins that the recipe names, and no others.

        Raises:
            RecipeError: a backend or a preset is not there, a type is not known, or a backend supports a
                config nowhere; it has the file, the line and the key. The error of the backend is its cause.
        """
        return _compose(self, Place(self.origin))

    def to_toml(self) -> str:
        """The recipe as text. Equal recipes give the same text.

        Raises:
            RecipeError: the package that writes TOML is not installed.
        """
        try:
            writer = importlib.import_module("tomlkit")
        except ImportError as error:
            raise RecipeError(
                "Writing a recipe needs a package that is not installed.",
                expected="tomlkit",
                got=str(error),
                remedy="pip install 'torchquilt[recipe]'",
            ) from error
        document = writer.document()
        document.add(writer.comment(_HEADING))
        document.add("schema", SCHEMA)
        for key, value in _recipe_data(self).items():
            document.add(key, _toml_item(writer, value))
        text: str = writer.dumps(document)
        return text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to a file. The file is replaced as a whole, or left as it was.

        Raises:
            RecipeError: the file cannot be written, or the package that writes TOML is not installed.
        """
        try:
            _replace_file(Path(os.path.realpath(path)), self.to_toml().encode())
        except (OSError, UnicodeEncodeError) as error:
            raise RecipeError(
                "The recipe cannot be written.",
                file=os.fspath(path),
                expected="a folder that can be written to, and names that are Unicode",
                got=f"{type(error).__name__}: {error}",
                remedy="check the path; what stood there before is as it was",
            ) from error


# --- Where things stand -------------------------------------------------------------------------------------

#: The way to a value in a document: keys, and indices of arrays.
Steps: TypeAlias = tuple[str | int, ...]


@attrs.frozen
class Origin:
    """A text that was read.

    Args:
        file: what to call it, or None.
        lines: the line, from 1, on which each value begins.
    """

    file: str | None = None
    lines: Mapping[Steps, int] = attrs.field(factory=dict, repr=False)


@attrs.frozen
class Place:
    """A place in a document, whether something stands there or not."""

    origin: Origin
    steps: Steps = ()

    def at(self, *steps: str | int) -> Place:
        """A place below this one."""
        return attrs.evolve(self, steps=self.steps + steps)

    @property
    def key(self) -> str:
        """The steps as text: ``quantizer[1].global.weight``. The first element of an array is 0."""
        text = ""
        for step in self.steps:
            if isinstance(step, int):
                text += f"[{step}]"
            else:
                bare = re.fullmatch(r"[A-Za-z0-9_-]+", step)
                text += ("." if text else "") + (step if bare else _shown(step))
        return text

    @property
    def line(self) -> int | None:
        """Its line; for what is missing, the line of what it is missing from."""
        lines = self.origin.lines
        above = (self.steps[:end] for end in range(len(self.steps), 0, -1))
        return next((lines[steps] for steps in above if steps in lines), None)

    def error(self, problem: str, **details: Any) -> RecipeError:
        """An error about this place."""
        return RecipeError(problem, file=self.origin.file, line=self.line, key=self.key or None, **details)

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Raise the errors of the rest of torchquilt as errors about this place."""
        try:
            yield
        except RecipeError:
            raise
        except TorchquiltError as error:
            spot = self
            if isinstance(error, SpecError) and self.at(error.field).steps in self.origin.lines:
                spot = self.at(error.field)
            raise spot.error(
                error.problem,
                quantizer=error.quantizer,
                expected=error.expected,
                got=error.got,
                remedy=error.remedy,
            ) from error


# --- Reading: all that can be said without a backend --------------------------------------------------------

#: What TOML calls a value of each type.
_KINDS: dict[type, str] = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "an array of tables",
}

#: The fields of a spec, with the type of each.
_SPEC_FIELDS: dict[str, type] = {
    "dtype": str,
    "quant_min": int,
    "quant_max": int,
    "granularity": str,
    "symmetric": bool,
    "is_dynamic": bool,
    "ch_axis": int,
    "group_size": int,
    "zero_point": int,
    "zero_point_domain": str,
    "eps": float,
}

#: The fields that are one of a few texts.
_CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": tuple(INTEGER_RANGES),
    "granularity": tuple(member.value for member in Granularity),
    "zero_point_domain": tuple(member.value for member in ZeroPointDomain),
}

#: The fields of a spec that are always written, since a reader would have to look up their defaults.
_ALWAYS_WRITTEN = ("dtype", "quant_min", "quant_max", "granularity")

#: What people may call a key, after the arguments of torchquilt, where no spelling leads to it.
_ALSO_CALLED = {"preset": "global", "type": "name", "module": "name"}

_A_CONFIG = f'"{FLOAT}", the name of a preset in quotes, or a table with a spec for each role'


@attrs.frozen
class _DtypeByName:
    """Stands in for a dtype, so that a spec can be checked where torch is not loaded."""

    name: str

    def __str__(self) -> str:
        return f"torch.{self.name}"


def _read_recipe(document: dict[str, Any], place: Place) -> Recipe:
    # The schema comes first: another one may have keys that this one does not know.
    schema = document.get("schema")
    if schema is None:
        raise place.error(
            "The recipe does not say which format it has.",
            expected=f"schema = {SCHEMA}",
            got="no schema",
            remedy=f"write schema = {SCHEMA} at the top",
        )
    if _checked(schema, int, place.at("schema")) != SCHEMA:
        raise place.at("schema").error(
            "The recipe has a format that this torchquilt does not know.",
            expected=f"schema = {SCHEMA}",
            got=f"schema = {schema}",
            remedy="pip install --upgrade torchquilt" if schema > SCHEMA else f"write schema = {SCHEMA}",
        )
    table = _table(document, ("schema", "quantizer"), place, needed=("quantizer",))
    return Recipe(_read_parts(table["quantizer"], place.at("quantizer")), place.origin)


def _read_parts(value: object, place: Place) -> tuple[RecipePart | Recipe, ...]:
    return tuple(_read_part(item, place.at(index)) for index, item in enumerate(_checked(value, list, place)))


def _read_part(value: object, place: Place) -> RecipePart | Recipe:
    table = _table(value, ("backend", "distribution", "global", "type", "module", "quantizer"), place)
    if ("backend" in table) == ("quantizer" in table):
        raise place.error(
            "An entry is a backend or a composition, one of the two.",
            expected='backend = "...", or quantizers below it: [[quantizer.quantizer]]',
            got="both" if "backend" in table else "neither",
            remedy="write the name of the backend; torchquilt.backends() lists what is installed",
        )
    if "backend" in table:
        distribution = table.get("distribution")
        if distribution is not None:
            _checked(distribution, str, place.at("distribution"))
        backend = _checked(table["backend"], str, place.at("backend"))
        return RecipePart(backend, _read_rules(table, place), distribution)
    _table(table, ("quantizer",), place)  # rules belong to a backend
    return Recipe(_read_parts(table["quantizer"], place.at("quantizer")), place.origin)


def _read_rules(table: dict[str, Any], place: Place) -> tuple[RecipeRule, ...]:
    rules: list[RecipeRule] = []
    places: dict[tuple[str, str], Place] = {}
    if "global" in table:
        rules.append(RecipeRule("global", "", _read_config(table["global"], place.at("global"))))
    for array, read in (("type", _read_type_rule), ("module", _read_module_rule)):
        for index, item in enumerate(_checked(table.get(array, []), list, place.at(array))):
            spot = place.at(array, index)
            rule = read(item, spot)
            first = places.setdefault((rule.kind, rule.name), spot)
            if first is not spot:
                raise _second_rule(rule, spot, first)
            rules.append(rule)
    return tuple(rules)


def _read_type_rule(value: object, place: Place) -> RecipeRule:
    table = _table(value, ("name", "class", "config"), place, needed=("config",))
    if ("name" in table) == ("class" in table):
        raise place.error(
            "A rule about a type has a name or a class, one of the two.",
            expected='name = "torch.nn.Linear", or class = "my_model.Block"',
            got="both" if "name" in table else "neither",
            remedy="write name for what torch has, class for a module class of your own",
        )
    config = _read_config(table["config"], place.at("config"))
    if "name" in table:
        return RecipeRule("type", _checked(table["name"], str, place.at("name")), config)
    spot = place.at("class")
    name = _checked(table["class"], str, spot)
    if name.startswith("torch.") or "." not in name:
        of_torch = name.startswith("torch.")
        raise spot.error(
            "This is a class of torch." if of_torch else "A class is given by its full name.",
            expected="the module that defines the class, and its name: my_model.layers.Block",
            got=_shown(name),
            remedy=f'write name = "{name}"' if of_torch else "see cls.__module__ and cls.__qualname__",
        )
    return RecipeRule("class", name, config)


def _read_module_rule(value: object, place: Place) -> RecipeRule:
    table = _table(value, ("name", "config"), place, needed=("name", "config"))
    name = _checked(table["name"], str, place.at("name"))
    return RecipeRule("module", name, _read_config(table["config"], place.at("config")))


def _read_config(value: object, place: Place) -> Asked:
    if isinstance(value, str):
        return None if value == FLOAT else value
    if not isinstance(value, dict):
        raise place.error("This is no config.", expected=_A_CONFIG, got=_shown(value))
    table = _table(value, (*ROLES, "is_qat"), place)
    specs = {role: _read_spec(table[role], place.at(role)) for role in ROLES if role in table}
    is_qat = _checked(table.get("is_qat", False), bool, place.at("is_qat"))
    with place.blamed():
        return SpelledConfig.of(QuantizationConfig(**specs, is_qat=is_qat))


def _read_spec(value: object, place: Place) -> QuantizationSpec:
    """A spec whose dtype is a stand-in: good for its checks and its values, and no use to torch."""
    table = dict(_table(value, _SPEC_FIELDS, place, needed=("dtype",)))
    for field, item in table.items():
        _checked(item, _SPEC_FIELDS[field], place.at(field))
    table["dtype"] = dtype_name(table["dtype"])
    for field, choices in _CHOICES.items():
        if field in table and table[field] not in choices:
            raise place.at(field).error(
                f"{_shown(table[field])} is not a {field} that torchquilt knows.",
                expected=" | ".join(map(_shown, choices)),
                got=_shown(table[field]),
                remedy=_did_you_mean(table[field], choices),
            )
    with place.blamed():
        return QuantizationSpec(**{**table, "dtype": _DtypeByName(table["dtype"])})


def _fields_of(spec: QuantizationSpec) -> SpecFields:
    found: list[tuple[str, Any]] = []
    for field in attrs.fields(QuantizationSpec):
        value = getattr(spec, field.name)
        # A zero point can only be the one that symmetry implies, which making the spec fills in.
        if field.name == "zero_point" or (field.name not in _ALWAYS_WRITTEN and value == field.default):
            continue
        kind = _SPEC_FIELDS[field.name]
        found.append((field.name, dtype_name(value) if field.name == "dtype" else kind(value)))
    return tuple(found)


def _table(
    value: object, known: Iterable[str], place: Place, *, needed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The value as a table that has no other keys than those known, and all that are needed."""
    table: dict[str, Any] = _checked(value, dict, place)
    known = tuple(known)
    for key in table:
        if key not in known:
            raise place.at(key).error(
                f"There is no key {_shown(key)} here.",
                expected=" | ".join(known),
                got=key,
                remedy=_did_you_mean(_ALSO_CALLED.get(key, key), known),
            )
    remedies = {
        "quantizer": "write quantizer = [] for a recipe that quantizes nothing",
        "config": f'write config = "{FLOAT}" to leave it in float',
    }
    for key in needed:
        if key not in table:
            raise place.at(key).error(
                f"The key {_shown(key)} is missing.",
                expected=_A_CONFIG if key == "config" else key,
                got=f"only {', '.join(table)}" if table else "nothing",
                remedy=remedies.get(key),
            )
    return table


def _checked(value: object, kind: type, place: Place) -> Any:
    """The value, if TOML gave it the type that belongs here."""
    fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
    # To Python true is a number, to whoever wrote it is not.
    if not fits or (isinstance(value, bool) and kind is not bool):
        single = kind is list and isinstance(value, dict)
        raise place.error(
            f"This has to be {_KINDS[kind]}.",
            expected=_KINDS[kind],
            got=_shown(value),
            remedy=f"write [[{place.steps[-1]}]], in double brackets" if single else None,
        )
    return value


def _shown(value: object) -> str:
    """A value as it stands in a file, or what it is where that would be long."""
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "an array"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)


def _did_you_mean(word: str, known: Iterable[str], otherwise: str = "use one of these") -> str:
    near = difflib.get_close_matches(word, tuple(known), n=2)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def _second_rule(rule: RecipeRule, place: Place, first: Place | None = None) -> RecipeError:
    line = first.line if first else None
    return place.error(
        f"There are two rules about the {rule.kind} {_shown(rule.name)}.",
        expected="one",
        got=f"another one on line {line}" if line else "another one above",
        remedy="remove one of them",
    )


# --- Making quantizers --------------------------------------------------------------------------------------


def _compose(recipe: Recipe, place: Place) -> ComposableQuantizer:
    from torchquilt.compose import ComposableQuantizer

    spots = (place.at("quantizer", index) for index in range(len(recipe.quantizers)))
    return ComposableQuantizer(
        _compose(part, spot) if isinstance(part, Recipe) else _make(part, spot)
        for part, spot in zip(recipe.quantizers, spots, strict=True)
    )


def _make(part: RecipePart, place: Place) -> Quantizer:
    from torchquilt.quantizers import PatternQuantizer

    with place.at("backend").blamed():
        made = registry.quantizer(part.backend, distribution=part.distribution)
    if not isinstance(made, PatternQuantizer):
        return _make_without_rules(part, made, place)
    types: set[ObjectType] = set()
    for rule, spot in _with_places(part.rules, place):
        if rule.array == "type":
            meant = _meant_type(made, rule, spot)
            if meant in types:  # one type under two names
                raise _second_rule(rule, spot)
            types.add(meant)
        _ask(made, rule, spot)
    return made


def _make_without_rules(part: RecipePart, made: Quantizer, place: Place) -> Quantizer:
    """A backend that does not work from a table and rules takes a preset, at most."""
    for rule, spot in _with_places(part.rules, place):
        if rule.kind != "global" or not isinstance(rule.config, str):
            raise spot.error(
                f"The backend {part.backend!r} takes no rules, only presets.",
                quantizer=part.backend,
                expected="global = the name of a preset, or nothing",
                got=f"a rule about a {rule.kind}" if rule.name else _A_CONFIG,
                remedy="remove the rule",
            )
        with spot.blamed():
            made = registry.quantizer(part.backend, rule.config, distribution=part.distribution)
    return made


def _with_places(rules: tuple[RecipeRule, ...], place: Place) -> Iterator[tuple[RecipeRule, Place]]:
    counts: dict[str, int] = {}
    for rule in rules:
        index = counts.get(rule.array, 0)
        counts[rule.array] = index + 1
        yield rule, place.at("global") if rule.kind == "global" else place.at(rule.array, index)


def _ask(made: PatternQuantizer, rule: RecipeRule, place: Place) -> None:
    """Give the quantizer the rule."""
    with (place if rule.kind == "global" else place.at("config")).blamed():
        config = _config(made, rule.config)
        if rule.kind == "global":
            made.set_global(config)
        elif rule.kind == "module":
            made.set_module_name(rule.name, config)
        else:
            made.set_object_type(_subject(made, rule), config)


def _config(made: PatternQuantizer, asked: Asked) -> QuantizationConfig | None:
    if not isinstance(asked, str):
        return None if asked is None else asked.config()
    if asked not in made.PRESETS:
        raise IntentError(
            f"{made.name} has no preset {asked!r}.",
            quantizer=made.name,
            expected=" | ".join([*made.PRESETS, FLOAT]),
            got=_shown(asked),
            remedy=_did_you_mean(asked, [*made.PRESETS, FLOAT]),
        )
    return made.PRESETS[asked]()


def _meant_type(made: PatternQuantizer, rule: RecipeRule, place: Place) -> ObjectType:
    """What the rule is about, in the eyes of the quantizer, which is left as it is."""
    asked = copy.copy(made)
    with place.at("class" if rule.kind == "class" else "name").blamed():
        asked.set_object_type(_subject(made, rule), None)
    return asked.intent.type_rules[-1].type


def _subject(made: PatternQuantizer, rule: RecipeRule) -> object:
    """Something that ``set_object_type`` takes for the type of this rule."""
    if rule.kind == "class":
        # Rules know a class by its name alone, so any of that name will do: nothing of the user is imported.
        module, _, name = rule.name.rpartition(".")
        return type(name, (), {"__module__": module, "__qualname__": name})
    try:
        copy.copy(made).set_object_type(rule.name, None)
    except IntentError:
        found = _found_in_torch(rule.name)
        if found is None:
            raise
        return found
    return rule.name


def _found_in_torch(name: str) -> object:
    """What a name such as ``torch.nn.LSTM`` or ``torch.ops.aten.sin.default`` stands for, or None."""
    if not name.startswith("torch."):
        return None
    torch = importlib.import_module("torch")
    try:
        found: object = functools.reduce(getattr, name.split(".")[1:], torch)
    except AttributeError:
        return None
    return found if callable(found) else None


# --- Describing quantizers ----------------------------------------------------------------------------------


def _describe(composed: ComposableQuantizer, backends: registry.Backends, place: Place) -> Recipe:
    from torchquilt.compose import ComposableQuantizer

    parts: list[RecipePart | Recipe] = []
    for index, quantizer in enumerate(composed.quantizers):
        spot = place.at("quantizer", index)
        # A class that derives from it may do something else, which would be lost.
        if type(quantizer) is ComposableQuantizer:
            parts.append(_describe(quantizer, backends, spot))
        else:
            parts.append(_describe_part(quantizer, backends, spot))
    return Recipe(tuple(parts))


def _describe_part(quantizer: Quantizer, backends: registry.Backends, place: Place) -> RecipePart:
    from torchquilt.quantizers import PatternQuantizer

    backend = _backend_of(quantizer, backends, place)
    if not isinstance(quantizer, PatternQuantizer):
        raise place.error(
            f"{quantizer.name} does not say what was asked of it.",
            quantizer=backend.name,
            expected="a quantizer that is a table and an intent (torchquilt.PatternQuantizer)",
            got=f"{type(quantizer).__module__}.{type(quantizer).__qualname__}",
            remedy="write the recipe by hand, with a preset of the backend",
        )
    if quantizer.intent.filter_function is not None:
        raise place.error(
            "A filter function cannot be written: it is code, and a recipe is data.",
            quantizer=backend.name,
            expected="rules about modules and types",
            got=getattr(quantizer.intent.filter_function, "__qualname__", quantizer.intent.filter_function),
            remedy="set_filter_function(None) removes it; set it again on what recipe.quantizer() makes",
        )
    distribution = backend.distribution if backend.status == "duplicate" else None
    part = RecipePart(backend.name, tuple(_rules_of(quantizer, place)), distribution)
    _check_that_it_makes(part, quantizer, place)
    return part


def _backend_of(quantizer: Quantizer, backends: registry.Backends, place: Place) -> registry.Backend:
    # An object that is only like a quantizer comes in an adapter.
    cls = type(getattr(quantizer, "subject", quantizer))
    for backend in backends:
        if backend.manifest is None or backend.status not in ("ok", "duplicate"):
            continue
        module, _, path = backend.manifest.quantizer.partition(":")
        # Nothing is imported for this: the module of an instance that is there has been.
        found: object = sys.modules.get(module)
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is cls:
            return backend
    names = [backend.name for backend in backends if backend.status in ("ok", "duplicate")]
    raise place.error(
        f"{quantizer.name} cannot be written: no installed backend provides it.",
        quantizer=quantizer.name,
        expected=f"a quantizer of {', '.join(names)}" if names else "a quantizer of an installed backend",
        got=f"{cls.__module__}.{cls.__qualname__}",
        remedy="make it a plugin, or leave it out and compose it with what recipe.quantizer() makes",
    )


def _rules_of(quantizer: PatternQuantizer, place: Place) -> Iterator[RecipeRule]:
    # A preset with the name that means float would be read as that, so it is spelled out.
    presets = [(name, make()) for name, make in quantizer.PRESETS.items() if name != FLOAT]

    def asked(config: QuantizationConfig | None) -> Asked:
        if config is None:
            return None
        return next((name for name, preset in presets if preset == config), SpelledConfig.of(config))

    intent = quantizer.intent
    if intent.global_rule is not None:
        yield RecipeRule("global", "", asked(intent.global_rule.config))
    for index, rule in enumerate(intent.type_rules):
        kind, name = _name_of_type(quantizer, rule.type, place.at("type", index))
        yield RecipeRule(kind, name, asked(rule.config))
    for named in intent.name_rules:
        yield RecipeRule("module", named.name, asked(named.config))


def _name_of_type(
    quantizer: PatternQuantizer, kind: ObjectType, place: Place
) -> tuple[Literal["type", "class"], str]:
    """The shortest of the names that are read as this type again."""
    last = kind.name.rpartition(".")[2]
    shorter = [f"torch.nn.{last}"] if kind.name.startswith("torch.nn.modules.") else []
    for name in (*shorter, kind.name, f"torch.ops.{kind.name}"):
        with contextlib.suppress(RecipeError):
            if _meant_type(quantizer, RecipeRule("type", name, None), place) == kind:
                return "type", name
    if kind.kind == "module" and not kind.name.startswith("torch."):
        return "class", kind.name
    raise place.error(
        f"The type {kind.name} cannot be written.",
        quantizer=quantizer.name,
        expected="a type that can be found again by its name",
        got=str(kind),
        remedy="write the rule about a module, or about the ATen operator",
    )


def _check_that_it_makes(part: RecipePart, quantizer: PatternQuantizer, place: Place) -> None:
    """Refuse a quantizer that has more to it than a recipe can say, instead of losing it."""
    made = _make(part, place)
    if made == quantizer:
        return
    alike = isinstance(made, type(quantizer)) and made.table == quantizer.table
    raise place.error(
        f"{quantizer.name} cannot be written: what the recipe makes would not be equal to it.",
        quantizer=part.backend,
        expected=repr(made) if alike else "the support table of the backend",
        got=repr(quantizer) if alike else "a table of its own",
        remedy="make it with torchquilt.quantizer(name) and its rules",
    )


# --- Writing ------------------------------------------------------------------------------------------------


def _recipe_data(recipe: Recipe) -> dict[str, Any]:
    parts = (_recipe_data(p) if isinstance(p, Recipe) else _part_data(p) for p in recipe.quantizers)
    return {"quantizer": list(parts)}


def _part_data(part: RecipePart) -> dict[str, Any]:
    """The tables of a part. What is one line comes before what is a table, as TOML wants it."""
    data: dict[str, Any] = {"backend": part.backend}
    if part.distribution is not None:
        data["distribution"] = part.distribution
    for rule in part.rules:
        config = _config_data(rule.config)
        if rule.kind == "global":
            data["global"] = config
        else:
            key = "class" if rule.kind == "class" else "name"
            data.setdefault(rule.array, []).append({key: rule.name, "config": config})
    return data


def _config_data(asked: Asked) -> str | dict[str, Any]:
    if not isinstance(asked, SpelledConfig):
        return FLOAT if asked is None else asked
    qat = {"is_qat": True} if asked.is_qat else {}
    return {**qat, **{role: dict(fields) for role, fields in asked.specs}}


def _toml_item(writer: Any, value: object) -> Any:
    """A value as an item of tomlkit, whose own conversion would put what is one line first, in any order."""
    if isinstance(value, dict):
        only_tables = all(isinstance(item, dict) for item in value.values())
        table = writer.table(is_super_table=only_tables)
        for key, item in value.items():
            table.add(key, _toml_item(writer, item))
        return table
    if isinstance(value, list) and value:
        array = writer.aot()
        for item in value:
            array.append(_toml_item(writer, item))
        return array
    return writer.item(value)


def _replace_file(path: Path, data: bytes) -> None:
    """Write beside the file, then put that in its place, which happens at once or not at all."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else the name could reach the disk before what it stands for
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# --- The lines of a text ------------------------------------------------------------------------------------

_GAP = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'[^']*'|[A-Za-z0-9_\-. \t])+""")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?""""{0,2}'  # up to two quotes more may stand before the three that end it
    r"|'''.*?''''{0,2}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'",
    re.DOTALL,
)
_BARE = re.compile(r"[^,\]}#\n]*")


def locate(text: str) -> dict[Steps, int]:
    """The line, from 1, of every key, table and element of a document.

    The parsers of the standard library and of tomlkit keep no lines of what they accepted.

    Args:
        text: valid TOML; what is not valid has been refused by the parser.
    """
    scan = _Scan(text)
    scan.read_document()
    return scan.lines


class _Scan:
    """Walks once over a text. Knows where values begin and end, and leaves what they are to the parser."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Steps, int] = {}
        self.last: dict[Steps, int] = {}  # index of the newest table of each [[array]]

    def read_document(self) -> None:
        table: Steps = ()
        self.take(_GAP)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.read_header()
            else:
                self.read_pair(table)
            self.take(_GAP)

    def read_header(self) -> Steps:
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        line = self.line
        self.at += brackets
        keys = self.read_key()
        self.at += brackets
        steps: Steps = ()
        for depth, key in enumerate(keys, 1):
            steps = (*steps, key)
            self.lines.setdefault(steps, line)
            if brackets == 2 and depth == len(keys):
                self.last[steps] = self.last.get(steps, -1) + 1
            if steps in self.last:
                steps = (*steps, self.last[steps])
        self.lines.setdefault(steps, line)
        return steps

    def read_pair(self, table: Steps) -> None:
        line = self.line
        steps = table
        for key in self.read_key():
            steps = (*steps, key)
            self.lines.setdefault(steps, line)
        self.at += 1  # the equals sign
        self.read_value(steps)

    def read_value(self, steps: Steps) -> None:
        self.take(_GAP)
        first = self.text[self.at]
        if first == "[":
            self.read_items("]", lambda index: self.read_element((*steps, index)))
        elif first == "{":
            self.read_items("}", lambda _: self.read_pair(steps))
        else:
            self.take(_STRING if first in "\"'" else _BARE)

    def read_element(self, steps: Steps) -> None:
        self.lines[steps] = self.line
        self.read_value(steps)

    def read_items(self, end: str, read: Callable[[int], None]) -> None:
        self.at += 1
        for index in range(len(self.text)):
            self.take(_GAP)
            if self.text[self.at] == end:
                break
            read(index)
            self.take(_GAP)
            self.at += self.text[self.at] == ","
        self.at += 1

    def read_key(self) -> list[str]:
        """The parts of a dotted key, some of which may be quoted: that much is left to the parser."""
        table: Any = tomllib.loads(f"{self.take(_KEY)} = 0")
        keys: list[str] = []
        while isinstance(table, dict):
            ((key, table),) = table.items()
            keys.append(key)
        return keys

    def take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return found[0]

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1
