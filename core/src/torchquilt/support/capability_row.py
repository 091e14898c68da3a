"""One row of support as plain data, and the answer to "is this supported?".

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Any

import attrs

from torchquilt._internal.json_values import from_plain, with_new_names
from torchquilt.spec.arithmetic_limits import IN_WORDS
from torchquilt.spec.config import Mode, QuantizationConfig, Role
from torchquilt.support.allowed_spec import SpecsByRole, differences_of
from torchquilt.support.object_type import ObjectType

#: Shown where there is nothing.
NONE = "–"


@attrs.frozen
class Capability:
    """One row of support as plain data: what a query returns.

    Args:
        backend: who does it.
        pattern: name of the operator pattern.
        operators: names of its operators in order.
        overloads: the ATen overloads of its working operator.
        functionals, modules: the other names of that operator.
        roles: the roles of the tensors around the pattern.
        mode: ``static``, ``dynamic`` or ``weight_only``.
        specs: for each quantized role, the specs that are taken.
        sharing: see :class:`Sharing`.
        constraints: ``(code, text)`` of each condition besides.
        targets: the lowering targets on which it runs as integers; on any other it does not.
        is_qat: whether it can be trained, too.
        scope: where in the model it applies, in words; empty where the answer is not about a model.
        presets: names of the backend's presets whose config it takes.
        anchor_index: index of the operator that does the work.
        limits: name and value of each limit of its kernels' integers (:class:`ArithmeticLimits`). Convert
            raises scales to keep them.
        probed: how the row was found out, in words, with the date, if the backend has no table that says it:
            by annotating examples. It takes no part in comparisons.
    """

    backend: str
    pattern: str
    operators: tuple[str, ...]
    overloads: tuple[str, ...]
    functionals: tuple[str, ...]
    modules: tuple[str, ...]
    roles: tuple[Role, ...]
    mode: Mode
    specs: SpecsByRole
    sharing: str = "none"
    constraints: tuple[tuple[str, str], ...] = ()
    targets: tuple[str, ...] = ()
    is_qat: bool = False
    scope: str = ""
    presets: tuple[str, ...] = ()
    anchor_index: int = 0
    limits: tuple[tuple[str, float], ...] = ()
    probed: str = attrs.field(default="", eq=False)

    @property
    def working(self) -> str:
        """Name of the operator that does the work."""
        return self.operators[self.anchor_index]

    def is_about(self, subject: ObjectType) -> bool:
        """Whether the working operator of the pattern is the one that is meant."""
        if subject.kind == "module":
            return subject.name in self.modules
        return any(overload in self.overloads for overload in subject.overloads)

    def differences(self, config: QuantizationConfig) -> tuple[str, ...]:
        """List the parts of ``config`` that this row does not take; empty where it takes all of it."""
        return differences_of(self.specs, self.roles, self.is_qat, config)

    def quantizes(self, role: Role | None, dtype: str | None, bits: int | None) -> bool:
        """Whether one of its specs has all that is given: a role, the name of a dtype, a number of bits."""
        if role is None and dtype is None and bits is None:
            return True
        return any(
            dtype in (None, spec.dtype) and bits in (None, spec.bits)
            for name, specs in self.specs
            for spec in specs
            if role in (None, name)
        )

    @property
    def label(self) -> str:
        """Subject of the row, in a few words."""
        where = f", {self.scope}" if self.scope else ""
        return f"{self.pattern} ({self.mode}) of {self.backend}{where}"

    def spec_text(self, between: str = "; ") -> str:
        """The specs in words. Roles that take the same ones stand together."""
        roles: dict[str, list[str]] = {}
        for role, specs in self.specs:
            text = " | ".join(map(str, specs))
            roles.setdefault(text, []).append(role.removesuffix("_activation"))
        return between.join(f"{', '.join(names)}: {text}" for text, names in roles.items())

    def limit_text(self, between: str = "; ") -> str:
        """The limits of its kernels' integers in words, empty where there are none."""
        return between.join(
            IN_WORDS[name].format(value) if name in IN_WORDS else f"{name}: {value:g}"
            for name, value in self.limits
        )

    def __str__(self) -> str:
        """All that there is to say about the row, a line for each kind of thing."""
        names = (*self.modules, *self.functionals, *self.overloads)
        lines = [
            self.label,
            f"  operators: {' → '.join(self.operators)}; {self.working} is also called {', '.join(names)}",
            f"  specs: {self.spec_text()}",
            f"  runs as integers on: {', '.join(self.targets) or NONE}",
            *([f"  limits: {self.limit_text()} (convert raises scales to keep them)"] if self.limits else ()),
            *([f"  presets: {', '.join(self.presets)}"] if self.presets else ()),
            *([f"  probed: {self.probed}"] if self.probed else ()),
            *(f"  only if {text} ({code})" for code, text in self.constraints),
        ]
        return "\n".join(lines)


@attrs.frozen
class Support:
    """The answer to "is this supported?"; true or false by itself.

    Args:
        capability: the row that takes it, or the nearest one that does not; None where no row is
            about the operator at all.
        differences: why not, a short text each: what the nearest row does not take, or that there is no
            row; empty where it is supported.
        behind: the other backends that take it as well, but come later.
    """

    capability: Capability | None
    differences: tuple[str, ...]
    behind: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        why = "; ".join(self.differences)
        if self.capability is None:
            return f"no: {why}"
        if not self:
            return f"no: nearest is {self.capability.label}, but {why}"
        later = f", which comes before {' and '.join(self.behind)}" if self.behind else ""
        return f"yes: {self.capability.label}{later}"


@attrs.frozen
class Contest:
    """An operator that several backends have rows for.

    Args:
        operator: its name.
        backends: the first one keeps a node wherever a row of it applies, the next ones get what it leaves.
    """

    operator: str
    backends: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.operator}: {', then '.join(self.backends)}"


def in_words(value: Any) -> str:
    """A field of a row in words."""
    if not isinstance(value, tuple):
        return str(value)
    parts = (f"{item[1]} ({item[0]})" if isinstance(item, tuple) else str(item) for item in value)
    return ", ".join(parts) or NONE


#: Names as torchquilt 0.1.0 wrote them → as they are now.
_NEW_FIELDS = {"lead": "anchor_index", "other_ranges": "excluded_ranges"}
_NEW_SHARING = {"passed_on": "follows_input"}


def capability_from(data: dict[str, Any]) -> Capability:
    """A row from JSON, under the names of today."""
    specs = [(role, [with_new_names(spec, _NEW_FIELDS) for spec in specs]) for role, specs in data["specs"]]
    sharing = _NEW_SHARING.get(data["sharing"], data["sharing"])
    return from_plain(Capability, {**with_new_names(data, _NEW_FIELDS), "specs": specs, "sharing": sharing})
