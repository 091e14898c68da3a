"""Manifest of a plugin, read before any of its real code is loaded.

A manifest is plain data and needs no torch, so that every installed backend can be listed at once. The class
that does the work is named as text and imported when somebody asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

from torchquilt.errors import PluginError

#: The number of the plugin interface that this core speaks. It goes up when a plugin that was written for the
#: number before could not work any more; a hook or a field that a plugin may leave out does not change it.
API = 1

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_T = TypeVar("_T")


def is_reference(value: object) -> bool:
    """Whether a value says where something is: ``"package.module:name"``."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def _check_name(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise PluginError(
            f"The {attribute.name} of a {type(instance).__name__} is not one that can be typed everywhere.",
            expected="a lower-case letter, then lower-case letters, digits and underscores",
            got=repr(value),
            remedy="use a name such as 'my_backend'",
        )


def _check_summary(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise PluginError(
            f"The {attribute.name} of a {type(instance).__name__} does not fit a row of a listing.",
            expected="one line of text",
            got=repr(value),
            remedy="say in one line what it quantizes and for what",
        )


def _check_api(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    # bool is an int to Python, and True is no number of an interface.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PluginError(
            "The api of a Manifest is not the number of a plugin interface.",
            expected="a whole number from 1",
            got=repr(value),
            remedy=f"write the number that the plugin was written for, for example api={API}",
        )


def _check_reference(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not is_reference(value):
        raise PluginError(
            f"The {attribute.name} of a Manifest does not say where the class is.",
            expected="'package.module:Class'",
            got=repr(value),
            remedy="name it as text; importing the class in the plugin module would load torch for a listing",
        )


def _check_presets(
    instance: object, attribute: attrs.Attribute[tuple[PresetInfo, ...]], value: tuple[PresetInfo, ...]
) -> None:
    strays = [preset for preset in value if not isinstance(preset, PresetInfo)]
    if strays:
        raise PluginError(
            "The presets of a Manifest hold something that is not a preset.",
            expected="PresetInfo(name, summary) for each",
            got=repr(strays[0]),
            remedy="wrap the name: PresetInfo('static_int8', 'what it does, in one line')",
        )
    names = [preset.name for preset in value]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PluginError(
            "Two presets of a Manifest have one name.",
            expected="each name once",
            got=", ".join(twice),
            remedy="rename or remove one of them",
        )


def _check_targets(
    instance: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]
) -> None:
    for target in value:
        if not isinstance(target, str) or not _NAME.fullmatch(target):
            raise PluginError(
                "The targets of a Manifest hold something that is not the name of a runtime.",
                expected="lower-case names such as 'executorch'",
                got=repr(target),
                remedy="name each runtime that the quantized model can be lowered to",
            )


def _check_contributions(
    instance: object, attribute: attrs.Attribute[Mapping[str, str]], value: Mapping[str, str]
) -> None:
    for target, reference in value.items():
        if not isinstance(target, str) or not _NAME.fullmatch(target) or not is_reference(reference):
            raise PluginError(
                "The contributions of a Manifest do not say what is contributed to which target.",
                expected="{'executorch': 'package.module:CONTRIBUTION'}",
                got=repr({target: reference}),
                remedy="name the target, and where the torchquilt.backend.Contribution for it is, as text",
            )


def _check_wraps(
    instance: object, attribute: attrs.Attribute[Mapping[str, str]], value: Mapping[str, str]
) -> None:
    for package, reference in value.items():
        if not isinstance(package, str) or not package.isidentifier() or not is_reference(reference):
            raise PluginError(
                "The wraps of a Manifest do not say whose quantizers are wrapped by what.",
                expected="{'torchao': 'package.module:function'}",
                got=repr({package: reference}),
                remedy="name the package of their base class, and as text the function that wraps one",
            )


def _check_foreign(
    instance: object,
    attribute: attrs.Attribute[tuple[ForeignInfo, ...]],
    value: tuple[ForeignInfo, ...],
) -> None:
    names = [each.name for each in value if isinstance(each, ForeignInfo)]
    if len(names) != len(value) or len(set(names)) != len(names):
        raise PluginError(
            "The foreign quantizers of a Manifest are not each one, under a name of its own.",
            expected="ForeignInfo(name=..., summary=..., distribution=..., quantizer=...) for each",
            got=repr(value),
            remedy="wrap what is none, and rename or remove one of two with one name",
        )


def _check_requirement(instance: Requirement, attribute: attrs.Attribute[str], value: str) -> None:
    if bool(value) == bool(instance.variable):
        raise PluginError(
            f"The requirement {instance.name!r} does not say by what it is found.",
            expected="module='package.module' or variable='NAME_OF_A_VARIABLE'",
            got="both" if value else "neither",
            remedy="name the module that it installs, or the environment variable that says where it is",
        )


def _tuple_of(values: Iterable[_T]) -> tuple[_T, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        # A text is a sequence of letters to Python: ("executorch") without its comma would be ten targets.
        raise PluginError(
            "A field of a Manifest that holds several values got a single one.",
            expected="a tuple",
            got=repr(values),
            remedy="write a tuple; one of a single value has a comma: ('executorch',)",
        )
    return tuple(values)


# attrs' support in type checkers takes the type of an argument from its converter, which may not be generic.
def _presets(values: Iterable[PresetInfo]) -> tuple[PresetInfo, ...]:
    return _tuple_of(values)


def _targets(values: Iterable[str]) -> tuple[str, ...]:
    return _tuple_of(values)


def _foreign(values: Iterable[ForeignInfo]) -> tuple[ForeignInfo, ...]:
    return _tuple_of(values)


def _requirements(values: Iterable[Requirement]) -> tuple[Requirement, ...]:
    return _tuple_of(values)


def _mapping(values: Mapping[str, str]) -> Mapping[str, str]:
    if not isinstance(values, Mapping):
        raise PluginError(
            "The contributions or the wraps of a Manifest are no mapping.",
            expected="{'executorch': 'package.module:CONTRIBUTION'}",
            got=repr(values),
            remedy="name the target, and where the contribution to it is, as text",
        )
    return MappingProxyType(dict(values))


@attrs.frozen
class PresetInfo:
    """A named configuration of a backend: what ``torchquilt.quantizer(name, preset=...)`` accepts.

    Args:
        name: lower-case identifier.
        summary: one line that says what it does.

    Raises:
        PluginError: a field is not of that form.
    """

    name: str = attrs.field(validator=_check_name)
    summary: str = attrs.field(validator=_check_summary)


@attrs.frozen
class Requirement:
    """Something that a foreign quantizer needs besides the package that it is in.

    Args:
        name: what it is called, for people.
        get: how to get it: a pip line, or where it is to be had.
        module: full name of a module that is there if it is installed. It is looked for, and not imported.
        variable: environment variable that says where it is, for what is no package of Python.
        to_lower: it is needed to lower what is quantized, or to run it; not to quantize.

    Raises:
        PluginError: it has both a module and a variable, or neither.
    """

    name: str
    get: str
    variable: str = attrs.field(default="", kw_only=True)
    module: str = attrs.field(default="", kw_only=True, validator=_check_requirement)
    to_lower: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen(kw_only=True)
class ForeignInfo:
    """A quantizer of another package that a bridge makes usable, for listings.

    Args:
        name: lower-case identifier.
        summary: one line that says for what it quantizes.
        distribution: the package that it is in, as pip knows it.
        quantizer: where its class is, as text. It is configured as its vendor says.
        needs: what else it takes to use it.

    Raises:
        PluginError: a field is not of that form.
    """

    name: str = attrs.field(validator=_check_name)
    summary: str = attrs.field(validator=_check_summary)
    distribution: str
    quantizer: str = attrs.field(validator=_check_reference)
    needs: tuple[Requirement, ...] = attrs.field(default=(), converter=_requirements)


@attrs.frozen(kw_only=True)
class Manifest:
    """Manifest of a plugin: the answer to the hook ``torchquilt_manifest``.

    A plugin is a backend (it has a quantizer), a lowering target, or both; or a bridge, which makes
    quantizers of objects that the core does not know.

    Args:
        name: what users call it, the same as its entry point: a lower-case identifier.
        api: the number of the plugin interface that the plugin was written for. Write the number itself: with
            :data:`API` a plugin would claim to fit whatever core it meets.
        summary: one line for listings.
        quantizer: where the class of a backend is, as ``"package.module:Class"``. It takes no arguments, and
            has ``from_preset(name)`` if there are presets.
        presets: the named configurations, in the order in which they are to be listed.
        targets: the runtimes that what it quantizes can be lowered to.
        target: where the class of a lowering target is, likewise; :class:`torchquilt.backend.Target` says
            what it has.
        contributions: name of a target → where the :class:`torchquilt.backend.Contribution` is that the
            target needs to lower what this backend quantizes.
        wraps: top-level package whose class ``Quantizer`` is the base of foreign quantizers → where the
            function is that makes a :class:`torchquilt.Quantizer` of one, as text.
        foreign: the quantizers that are known to be in such packages.

    Raises:
        PluginError: a field is not of that form, two presets share a name, or it is none of the three.
    """

    name: str = attrs.field(validator=_check_name)
    api: int = attrs.field(validator=_check_api)
    summary: str = attrs.field(validator=_check_summary)
    quantizer: str | None = attrs.field(default=None, validator=_check_reference)
    presets: tuple[PresetInfo, ...] = attrs.field(default=(), converter=_presets, validator=_check_presets)
    targets: tuple[str, ...] = attrs.field(default=(), converter=_targets, validator=_check_targets)
    target: str | None = attrs.field(default=None, validator=_check_reference)
    contributions: Mapping[str, str] = attrs.field(
        factory=dict, converter=_mapping, validator=_check_contributions, hash=False
    )
    wraps: Mapping[str, str] = attrs.field(
        factory=dict, converter=_mapping, validator=_check_wraps, hash=False
    )
    foreign: tuple[ForeignInfo, ...] = attrs.field(default=(), converter=_foreign, validator=_check_foreign)

    def __attrs_post_init__(self) -> None:
        if self.quantizer is None and self.target is None and not self.wraps:
            raise PluginError(
                "A Manifest does not say what the plugin is.",
                plugin=self.name,
                expected="quantizer='package.module:Class' for a backend, or target= for a lowering target",
                got="neither",
                remedy="name the class, as text",
            )

    @property
    def preset_names(self) -> tuple[str, ...]:
        """The names of the presets, in their order."""
        return tuple(preset.name for preset in self.presets)
