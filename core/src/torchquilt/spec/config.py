"""A spec for each role of an operator: what a user asks for, and what a preset is.

Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import attrs

from torchquilt.errors import SpecError
from torchquilt.spec.qspec import QuantizationSpec

#: What a tensor is to an operator.
Role: TypeAlias = Literal["input_activation", "output_activation", "weight", "bias"]
#: When the parameters of the activations are found: before, at run time, or never.
Mode: TypeAlias = Literal["static", "dynamic", "weight_only"]

#: All roles, in the order in which tables show them.
ROLES: tuple[Role, ...] = get_args(Role)
#: All modes.
MODES: tuple[Mode, ...] = get_args(Mode)


@attrs.frozen(cache_hash=True)
class QuantizationConfig:
    """Specs for the tensors of an operator, by role. A role that is None stays in float.

    Args:
        input_activation: every activation that the operator reads.
        output_activation: what it returns.
        weight: its constant weight. The axis of ``per_axis`` is the one of ``nn.Linear`` and
            ``nn.Conv2d`` (0: output channels); a table says where an operator has it elsewhere.
        bias: its constant bias.
        is_qat: meant for quantization-aware training (:func:`torchquilt.prepare_qat_pt2e`); a row that cannot
            be trained refuses it. The integers are the same without.

    Raises:
        SpecError: a role holds something that is no :class:`QuantizationSpec`, all roles are None,
            or the output is dynamic (there is no later input to find its parameters from).
    """

    input_activation: QuantizationSpec | None = None
    output_activation: QuantizationSpec | None = None
    weight: QuantizationSpec | None = None
    bias: QuantizationSpec | None = None
    is_qat: bool = attrs.field(default=False)

    def __attrs_post_init__(self) -> None:
        for role in ROLES:
            spec = getattr(self, role)
            if spec is not None and not isinstance(spec, QuantizationSpec):
                raise SpecError(
                    f"The role {role} takes a QuantizationSpec of torchquilt.",
                    field=role,
                    expected="torchquilt.QuantizationSpec or None",
                    got=f"{type(spec).__module__}.{type(spec).__qualname__}",
                    remedy="build it with torchquilt.QuantizationSpec(dtype=..., ...)",
                )
        if all(getattr(self, role) is None for role in ROLES):
            raise SpecError(
                "This config quantizes nothing.",
                field="input_activation",
                expected="a spec for at least one role",
                got="None for every role",
                remedy="to leave something in float pass None instead of a config",
            )
        for role in ("output_activation", "weight", "bias"):
            spec = getattr(self, role)
            if spec is not None and spec.is_dynamic:
                raise SpecError(
                    f"Only the input of an operator can be dynamic, not its {role}.",
                    field=role,
                    expected=f"{role}=None or a spec with is_dynamic=False",
                    got=str(spec),
                    remedy=f"set {role}=None",
                )

    def spec(self, role: Role) -> QuantizationSpec | None:
        """The spec of one of :data:`ROLES`."""
        found: QuantizationSpec | None = getattr(self, role)
        return found

    @property
    def mode(self) -> Mode:
        """``static``, ``dynamic`` or ``weight_only``: when the parameters of the activations are found."""
        if self.input_activation is None and self.output_activation is None:
            return "weight_only"
        if self.input_activation is not None and self.input_activation.is_dynamic:
            return "dynamic"
        return "static"

    def __str__(self) -> str:
        specs = ", ".join(f"{role}: {self.spec(role)}" for role in ROLES if self.spec(role) is not None)
        return f"{self.mode}{' qat' if self.is_qat else ''} ({specs})"
