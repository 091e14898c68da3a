"""Comparing a lowered program with the quantized model that it was made of.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.errors import LoweringError, MissingRuntimeError, VerificationError
from torchquilt.graph.node_values import arguments_of, operator_of, overload_name
from torchquilt.graph.signature import call_arguments
from torchquilt.graph.subgraphs import nodes_of
from torchquilt.lowering.program import LoweredProgram
from torchquilt.lowering.program_facts import Agreement, Port, Verification
from torchquilt.lowering.program_io import output_scales
from torchquilt.lowering.region_inlining import inlined
from torchquilt.lowering.rounding import rounded_otherwise
from torchquilt.lowering.token_scales import chosen_as_needed

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: SQNR of ``verify=True``, in dB: noise of a hundredth of the signal's norm.
LEAST_SQNR = 40.0
#: One of so many indices, truth values and the like may differ under ``"auto"``: two values that are equal in
#: one of the models may be a step apart in the other.
_ONE_TIE_IN = 10
#: Most runs of a model with other roundings, if a program is too far from it: a short text has few values
#: that lie halfway, and a single run may find none of them.
_RUNS = 3
#: By how many dB a program may be further from the model than the model from itself. Measured on six layers
#: of MiniLM: batches of texts are 30.1 to 31.4 dB off, where such runs are 30.3 to 30.9 dB off.
_MARGIN = 3.0
#: SQNR in dB below which nothing is excused: noise of a third of the signal's norm.
_NEVER_EXCUSED = 10.0
_TIE = "a tie may have fallen another way"
_NAN = "the model returns NaN where the program does not, which is not compared"
_DISCRETE = frozenset({"int64", "int32", "bool"})
#: Arguments that say whether an operator that can draw random numbers does.
_SWITCHES = ("train", "training")


def verified_if_possible(
    program: LoweredProgram, model: ExportedProgram, example_inputs: object
) -> Verification:
    """Compare a program if that can be done here, or else say why not: ``verify="auto"``.

    Args:
        program: it is run.
        model: the quantized model.
        example_inputs: as for :func:`verified`; None takes those that the model was exported with.

    Raises:
        LoweringError, ProgramError, VerificationError: as :func:`verified` raises them.
    """
    if example_inputs is None and model.example_inputs is None:
        return Verification((), LEAST_SQNR, "there are no example inputs")
    try:
        if drawn := next(_random_operators(model), ""):
            args, kwargs = _inputs_of(model, example_inputs)
            _outputs(model, args, kwargs)
            _returned(program, args, kwargs)
            return Verification((), LEAST_SQNR, f"it runs; the model draws random numbers ({drawn})")
        return verified(program, model, example_inputs, LEAST_SQNR, excuses=True)
    except MissingRuntimeError as error:
        return Verification((), LEAST_SQNR, f"it does not run here: {error.problem}")


def _random_operators(model: ExportedProgram) -> Iterator[str]:
    """The operators of a model that draw random numbers when it runs."""
    for node in nodes_of(model.graph_module):
        operator = operator_of(node)
        if operator is None or not any(tag.name == "nondeterministic_seeded" for tag in operator.tags):
            continue
        given = arguments_of(node)
        is_off = any(given.get(name) is False for name in _SWITCHES)
        if not is_off and given.get("p", given.get("dropout_p")) != 0:
            yield overload_name(node)


def verified(
    program: LoweredProgram,
    model: ExportedProgram,
    example_inputs: object,
    least_sqnr: float,
    *,
    excuses: bool = False,
) -> Verification:
    """Run both on the example inputs.

    Args:
        program: it is run.
        model: the quantized model, whose inputs and outputs are floating point. Its state stays as it is.
        example_inputs: one batch as for :func:`torchquilt.calibrate`. With ``excuses`` None stands for those
            that the model was exported with.
        least_sqnr: the least SQNR of each output, in dB, unless it is within one quantization step.
        excuses: let differences pass that need not be a fault: a tie that falls another way, NaN of the
            model, tokens whose scale is smaller than torch chooses, and a difference no larger than that
            between two runs of the model with other roundings.

    Raises:
        LoweringError: there are no inputs, or the model does not take them.
        ProgramError: the program does not run.
        VerificationError: an output differs by more.
    """
    if example_inputs is None and not excuses:
        raise LoweringError(
            "A program is verified on example inputs.",
            expected="example_inputs",
            got=None,
            remedy="lower(quantized, batch, verify=True)",
        )
    args, kwargs = _inputs_of(model, example_inputs)
    expected, found = _outputs(model, args, kwargs), _returned(program, args, kwargs)
    steps = output_scales(inlined(model).program)
    ports = program.io.outputs

    def compared(values: list[Any]) -> tuple[Agreement, ...]:
        pairs = zip(ports, steps, values, found, strict=True)
        return tuple(_agreement(*pair, excuses) for pair in pairs)

    outputs = compared(expected)
    if excuses and not Verification(outputs, least_sqnr):
        nearer = compared(_outputs(model, args, kwargs, chosen_as_needed()))
        outputs = tuple(
            _with_small_scales(output, other, least_sqnr)
            for output, other in zip(outputs, nearer, strict=True)
        )
    if excuses and not Verification(outputs, least_sqnr):
        outputs = _with_roundings(outputs, expected, model, args, kwargs, least_sqnr)
    result = Verification(outputs, least_sqnr)
    if not result:
        worst = next(output for output in outputs if not output.is_within(least_sqnr))
        raise VerificationError(
            "The program does not compute what the quantized model computes.",
            verification=result,
            node=worst.output,
            backend=", ".join(program.backends),
            expected=f"at least {least_sqnr:g} dB, or a difference of one quantization step of the output",
            got=str(worst),
            remedy="see what runs where in lower(..., verify=False).ledger; lower with fewer backends, or "
            "leave out of the quantization what differs",
        )
    return result


def _with_small_scales(output: Agreement, nearer: Agreement, least_sqnr: float) -> Agreement:
    """An output that differs, excused if it agrees with a model whose scales of tokens may be smaller."""
    if output.is_within(least_sqnr) or not nearer.is_within(least_sqnr):
        return output
    note = (
        f"{nearer.sqnr:.1f} dB where the model has scales of tokens below 2**-23, which torch does not choose"
    )
    return attrs.evolve(output, note="; ".join(filter(None, (output.note, note))), is_excused=True)


def _with_roundings(
    outputs: tuple[Agreement, ...],
    expected: list[Any],
    model: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    least_sqnr: float,
) -> tuple[Agreement, ...]:
    """Excuse outputs that differ from the model no more than roundings of its floats make it differ.

    The model is run with other roundings until all outputs are excused, at most a few times.
    """
    for seed in range(_RUNS):
        if Verification(outputs, least_sqnr):
            break
        moved = _outputs(model, args, kwargs, rounded_otherwise(seed))
        outputs = tuple(
            output if output.is_within(least_sqnr) else _rounded(output, one, other)
            for output, one, other in zip(outputs, expected, moved, strict=True)
        )
    return outputs


def _rounded(output: Agreement, expected: Any, moved: Any) -> Agreement:
    """An output that differs, excused if roundings make the model differ as much."""
    import torch

    if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
        return output
    port = Port(output.output, str(moved.dtype).removeprefix("torch."), ())
    itself = _agreement(port, output.step, expected, moved, excuses=True).sqnr
    if not math.isfinite(itself) or output.sqnr < max(itself - _MARGIN, _NEVER_EXCUSED):
        return output
    note = f"the model is {itself:.1f} dB from itself where what it quantizes rounds otherwise"
    return attrs.evolve(output, note="; ".join(filter(None, (output.note, note))), is_excused=True)


def _inputs_of(model: ExportedProgram, example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call; None stands for those that the model was exported with."""
    if example_inputs is None and model.example_inputs is not None:
        args, kwargs = model.example_inputs
        return args, kwargs
    return call_arguments(model.module(), example_inputs)


def _outputs(
    model: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: AbstractContextManager[None] | None = None,
) -> list[Any]:
    """Outputs of the model, in order, run within a context."""
    from torchquilt._internal.torch_private import pytree

    with context or nullcontext():
        return pytree.tree_leaves(_run(model, args, kwargs))


def _returned(program: LoweredProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Outputs of the program, in order, which takes its inputs as its ports say."""
    from torchquilt._internal.torch_private import pytree

    leaves, structure = pytree.tree_flatten((args, kwargs))
    given = [_as_port(port, value) for port, value in zip(program.io.inputs, leaves, strict=False)]
    args, kwargs = pytree.tree_unflatten(given, structure) if len(given) == len(leaves) else (args, kwargs)
    return pytree.tree_leaves(program.run(*args, **kwargs))


def _run(model: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the model. It writes to copies of its buffers."""
    import torch

    from torchquilt.graph.node_values import is_overwritten

    module = model.module()
    written = {str(node.target) for node in module.graph.find_nodes(op="get_attr") if is_overwritten(node)}
    for name in written:
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        setattr(owner, attribute, getattr(owner, attribute).detach().clone())
    try:
        with torch.no_grad():
            return module(*args, **kwargs)
    except Exception as error:  # torch raises what it likes for inputs that do not fit
        raise LoweringError(
            "The quantized model does not take the example inputs.",
            expected="a batch as calibrate takes it",
            got=f"{type(error).__name__}: {error}",
            remedy="see the cause above",
        ) from error


def _as_port(port: Port, value: Any) -> Any:
    """An input as the program takes it: quantized, where it takes integers for real numbers."""
    import torch

    if port.scale is None or port.zero_point is None or not isinstance(value, torch.Tensor):
        return value
    integers = torch.round(value / port.scale) + port.zero_point
    return integers.clamp(port.quant_min, port.quant_max).to(getattr(torch, port.dtype))


def _agreement(port: Port, step: float | None, expected: Any, found: Any, excuses: bool) -> Agreement:
    import torch

    if expected is None or isinstance(expected, str):
        is_same = type(expected) is type(found) and expected == found
        return Agreement(port.name, math.inf if is_same else -math.inf, 0.0 if is_same else math.inf, step)
    if found is None or isinstance(found, str):
        return Agreement(port.name, -math.inf, math.inf, step)
    one = torch.as_tensor(expected).double()
    other = torch.as_tensor(found).double()
    if port.scale is not None and port.zero_point is not None:
        other = (other - port.zero_point) * port.scale
    if one.shape != other.shape:
        return Agreement(port.name, -math.inf, math.inf, step)
    # Equal elements have no difference, infinities and NaN included.
    is_equal = (one == other) | (one.isnan() & other.isnan())
    difference, note = torch.where(is_equal, 0.0, one - other), ""
    if excuses and bool((one.isnan() & ~is_equal).any()):
        difference, note = torch.where(one.isnan(), 0.0, difference), _NAN
    noise, signal = float(difference.norm()), float(torch.where(one.isnan(), 0.0, one).norm())
    largest = float(difference.abs().max()) if difference.numel() else 0.0
    if noise == 0:
        return Agreement(port.name, math.inf, 0.0, step, note)
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return Agreement(port.name, -math.inf, math.inf, step, note)
    ratio = 20 * math.log10(max(signal, 1e-30) / noise)
    is_discrete = port.scale is None and str(port.dtype) in _DISCRETE
    if excuses and is_discrete and int((~is_equal).sum()) <= max(1, one.numel() // _ONE_TIE_IN):
        return Agreement(port.name, ratio, largest, step, _TIE, is_excused=True)
    return Agreement(port.name, ratio, largest, step, note)
