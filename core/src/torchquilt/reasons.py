"""Every stable code, once: why an operator stays in float, how it runs after lowering, and warnings of
ranges.

The ledger, the errors for rules without effect, the conformance kit, the command line and the docs read them
here. Importing this module does not import torch.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class ReasonCode:
    """A reason for which an operator stays in float.

    Args:
        code: the stable code. In a ledger ``:`` and the name of something may stand behind it, see ``about``.
        meaning: a sentence.
        remedy: what to do so that the operator is quantized.
        about: what is named behind the code, ``quantizer`` or ``code``; empty where nothing is.
        rank: how far a row of a table came before it was rejected; the larger, the more telling. None for
            reasons that no row gives.
        is_lost_chance: whether the quantizer could have quantized the operator otherwise. A rule for the
            whole model is without effect where all operators that it could quantize were lost so.
        depends_on_neighbours: whether it may cease to hold when a neighbour is quantized.
        is_of_model: whether a model that stands for a pattern may be refused with it by a row that takes the
            config.
    """

    code: str
    meaning: str
    remedy: str
    about: str = attrs.field(default="", kw_only=True)
    rank: int | None = attrs.field(default=None, kw_only=True)
    is_lost_chance: bool = attrs.field(default=False, kw_only=True)
    depends_on_neighbours: bool = attrs.field(default=False, kw_only=True)
    is_of_model: bool = attrs.field(default=False, kw_only=True)

    @property
    def label(self) -> str:
        """The code as docs write it: ``claimed_by:<quantizer>``."""
        return f"{self.code}:<{self.about}>" if self.about else self.code


#: From the least telling to the most telling, as a row of a table is tried; those that no row gives come
#: first.
REASONS: tuple[ReasonCode, ...] = (
    ReasonCode(
        "unsupported_op",
        "No quantizer has a row for the operator.",
        "compose a backend that has a row for it; Capabilities.filter(op) lists them",
    ),
    ReasonCode(
        "decomposed",
        "The program was decomposed before, so that the operator of the user's is not there any more.",
        "prepare the program as torch.export gave it, before run_decompositions()",
    ),
    ReasonCode(
        "control_flow",
        "It runs subgraphs, whose operators have rows of their own (``subgraph.node``).",
        "look at the rows of the operators in it",
    ),
    ReasonCode(
        "subgraph_not_entered",
        "A higher-order operator that is not known; its subgraph stays as it is.",
        "write the operator without a subgraph, or leave it in float",
    ),
    ReasonCode(
        "never_reached",
        'Calibration never reached it (``convert_pt2e(..., unseen="float")``).',
        "calibrate with a batch that reaches it",
    ),
    ReasonCode(
        "not_annotated",
        "The quantizer did not annotate it, and gives no reason.",
        "ask the author of the quantizer; a support table would give the reason",
        rank=0,
    ),
    ReasonCode(
        "no_kernel",
        "The backend's runtime has no kernel for this operator.",
        "remove the rule that asks for it, or compose a backend that has a kernel",
        rank=1,
    ),
    ReasonCode(
        "not_the_operator",
        "Supported only as part of a longer pattern, which does not occur here.",
        "quantize the whole pattern, or compose a backend that has a row for the operator alone",
        rank=2,
    ),
    ReasonCode(
        "used_elsewhere",
        "The chain cannot be fused, since a tensor inside of it has other users.",
        "compose a backend that has a row for the operator alone",
        rank=3,
        is_lost_chance=True,
        is_of_model=True,
    ),
    ReasonCode(
        "claimed_by",
        "Another quantizer took a neighbour that the pattern needs.",
        "compose the quantizer before the one that took the neighbour",
        about="quantizer",
        rank=4,
        is_lost_chance=True,
        is_of_model=True,
    ),
    ReasonCode(
        "constant",
        "It is computed from constants alone.",
        "nothing; it is computed once, when the model is exported",
        rank=5,
        is_of_model=True,
    ),
    ReasonCode(
        "function_transform",
        "It runs under torch.vmap or the like, whose tensors cannot be observed.",
        "write the program without the transform: exported.run_decompositions({})",
        rank=6,
        is_lost_chance=True,
    ),
    ReasonCode(
        "random",
        "It draws random numbers.",
        "leave it in float, or, for dropout, export the model in evaluation mode",
        rank=7,
        is_lost_chance=True,
    ),
    ReasonCode(
        "kept_in_float",
        "A recovery pass keeps it in float.",
        "prepare the model without this pass (torchquilt.recovery.steps_of names it)",
        rank=8,
        is_lost_chance=True,
    ),
    ReasonCode(
        "not_float",
        "A tensor is not floating point.",
        "nothing; integers are not quantized. For other floating point dtypes convert the model to float32",
        rank=9,
        is_of_model=True,
    ),
    ReasonCode(
        "no_elements",
        "A tensor has no elements.",
        "export the model with inputs that have elements",
        rank=10,
        is_lost_chance=True,
        is_of_model=True,
    ),
    ReasonCode(
        "not_asked", "No rule asks for it.", "add a rule for its module, its type or the whole model", rank=11
    ),
    ReasonCode(
        "excluded_by_intent",
        "A rule says that it stays in float.",
        "remove the rule that asks for None there",
        rank=12,
    ),
    ReasonCode(
        "excluded_by_filter",
        "The filter function leaves it out.",
        "let the filter function return True for it",
        rank=13,
        is_lost_chance=True,
    ),
    ReasonCode(
        "different_intent",
        "The operators of the pattern are asked for with different configs.",
        "ask for one config for all operators of the pattern",
        rank=14,
        is_lost_chance=True,
    ),
    ReasonCode(
        "config_not_supported",
        "The backend has a row for the operator, but not with this config.",
        "ask for a config that the row takes; Capabilities.supports(op, config) says what differs",
        rank=15,
    ),
    ReasonCode(
        "writes_in_place",
        "It writes into a tensor that other operators read.",
        "write the operator out of place (relu instead of relu_)",
        rank=16,
        is_lost_chance=True,
        is_of_model=True,
    ),
    ReasonCode(
        "constraint",
        "A condition of the row does not hold.",
        "change the model so that the condition holds, or leave the operator in float",
        about="code",
        rank=17,
        is_lost_chance=True,
        is_of_model=True,
    ),
    ReasonCode(
        "no_quantized_neighbour",
        "It shares its input's parameters, and its input is not quantized.",
        "quantize the operator in front of it",
        rank=18,
        is_of_model=True,
        depends_on_neighbours=True,
    ),
    ReasonCode(
        "neighbour_not_supported",
        "It shares its input's parameters, and the backend does not support these.",
        "quantize the operator in front of it as this backend takes it",
        rank=19,
        is_of_model=True,
        depends_on_neighbours=True,
    ),
    ReasonCode(
        "not_profitable",
        "It is cheap, and quantizing it would cost more conversions than it saves.",
        "add a rule that names the operator, or quantize its neighbours",
        rank=20,
        depends_on_neighbours=True,
    ),
)


@attrs.frozen
class StatusCode:
    """A lowering status of an operator.

    Args:
        code: the stable code.
        meaning: a sentence.
        rank: 0 is the worst. An operator that becomes several has the status of the worst of them; None for
            one that becomes none.
    """

    code: str
    meaning: str
    rank: int | None


LOWERING_STATUSES = (
    StatusCode("delegated_as_integers", "a delegate computes it with integers", 5),
    StatusCode("delegated_as_float", "a delegate computes it, in float", 3),
    StatusCode("integer_kernel", "a kernel of the runtime itself computes it with integers", 4),
    StatusCode(
        "fell_back_to_float", "it was quantized, and a kernel of the runtime itself computes it in float", 1
    ),
    StatusCode("float_kernel", "it was not quantized, and a kernel of the runtime itself computes it", 2),
    StatusCode(
        "refused_by_delegate",
        "a delegate refuses it, so a kernel of the runtime itself computes it, in float",
        0,
    ),
    StatusCode("removed", "nothing of the program comes from it: it was folded, or did nothing", None),
)


#: Statuses of an operator that computes with integers.
INTEGER_STATUSES = frozenset({"delegated_as_integers", "integer_kernel"})


@attrs.frozen
class CautionCode:
    """A warning of the range of a tensor.

    Args:
        code: the stable code.
        meaning: what is so about the range.
    """

    code: str
    meaning: str


CAUTIONS = (
    CautionCode("outlier", "nearly all values use next to nothing of the range"),
    CautionCode("far_apart", "the range is for some of the values, the others are less than one step of it"),
    CautionCode("mask_values", "the range is that of a mask, or of values computed from one"),
    CautionCode("scale_raised", "the integers of the kernels need a larger scale than calibration chose"),
    CautionCode("cut_off", "a symmetric range has next to no integers on one side of zero, where values are"),
)

_REASON_OF = {reason.code: reason for reason in REASONS}
_HIGHEST = max(reason.rank for reason in REASONS if reason.rank is not None)


def reason_of(code: str) -> ReasonCode | None:
    """The entry of a code as a ledger has it (``claimed_by:mine``), None for a code of a plugin's own."""
    return _REASON_OF.get(code.partition(":")[0])


def rank_of(code: str) -> int:
    """Rank of a code. One of a plugin's own is above all others, as the most particular one."""
    found = reason_of(code)
    return _HIGHEST + 1 if found is None or found.rank is None else found.rank


def rank_of_status(code: str) -> int:
    """Rank of a lowering status; 0 is the worst."""
    (rank,) = (status.rank for status in LOWERING_STATUSES if status.code == code)
    assert rank is not None, code
    return rank
