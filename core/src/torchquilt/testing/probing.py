"""Capabilities of quantizers that have no table, found out by annotating examples of operators.

Examples are annotated in child processes, many as one model while all goes well. Where one hangs, ends the
process or fails, each is annotated by itself, so that the row of that one can say so. A quantizer that takes
its time for any model is given all examples as one.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from torch.fx import Node

from torchquilt.graph.node_values import arguments_of, is_constant, overload_name
from torchquilt.pt2e.annotate import annotate_copy
from torchquilt.quantizers.base import Quantizer
from torchquilt.spec.annotation import annotation_of
from torchquilt.spec.config import ROLES, Mode, Role
from torchquilt.spec.dtypes import dtype_name
from torchquilt.spec.qspec import DerivedQuantizationSpec, QuantizationSpec
from torchquilt.support import operators
from torchquilt.support.allowed_spec import AllowedSpec
from torchquilt.support.capabilities import Capabilities
from torchquilt.support.capability_row import Capability
from torchquilt.support.operators import OPERATORS, Operator
from torchquilt.testing.examples import Example, operator_examples, side_by_side
from torchquilt.testing.probe_cache import Subject
from torchquilt.testing.probe_child import TOO_LONG, Stopwatch, in_child, limit

#: Seconds that a child process may take, by a :class:`Stopwatch`, and one for a model without operators.
EACH, FOR_NOTHING = 10.0, 2.0

# Operators of which each is also tried behind one that is usually quantized, and those that a ReLU follows.
_IN_FRONT = (operators.LINEAR, operators.CONV2D)
_BEFORE_RELU = (operators.LINEAR, operators.CONV1D, operators.CONV2D, operators.ADD)
# As many examples are tried at first as one model, and twice as many after each time that went well.
_FIRST = 8
_MOST_NAMED = 4
_STRICT = (("strict_export", "the program is exported with strict=True"),)
_NOT_REACHED = "not reached in the time that probing may take"

#: Role → the specs of tensors in it; empty where nothing is annotated. A text says why there is no answer.
Outcome: TypeAlias = dict[str, tuple[AllowedSpec, ...]] | str


@attrs.frozen(eq=False)
class _Probe:
    """An example, and the operators in it that a row would be about."""

    pattern: tuple[Operator, ...]
    example: Example
    in_front: tuple[Operator, ...] = ()

    @property
    def label(self) -> str:
        """The call of the operator, in words."""
        return self.example.label + " behind a quantized operator" * bool(self.in_front)


def probe(quantizer: Quantizer, subject: Subject, *, again: bool = False) -> Capabilities:
    """Find out what a quantizer annotates under its config, and with which specs.

    Takes up to a minute, or what ``TORCHQUILT_PROBING_SECONDS`` says; and no time where a subject with the
    same content has been probed before, see :class:`Subject`. The quantizer is left as it is, since examples
    are annotated in child processes.

    Args:
        quantizer: the quantizer. A row is about its name.
        subject: the content that the rows depend on.
        again: probe it even so.
    """
    known = None if again else subject.known()
    if known is None:
        stopwatch, probes = Stopwatch(), _probes()
        trial = _trial(quantizer, stopwatch, probes)
        outcomes = [*trial.outcomes(probes)]
        known = Capabilities(tuple(_rows(trial, probes, outcomes, subject)))
        # Of what took too long on a busy machine more may be known another time.
        if stopwatch.is_exact or not any(map(_is_out_of_time, outcomes)):
            subject.save(known)
    return known


def _is_out_of_time(outcome: object) -> bool:
    return isinstance(outcome, str) and outcome.startswith((TOO_LONG, _NOT_REACHED))


def _is_reached(outcome: object) -> bool:
    return not (isinstance(outcome, str) and outcome.startswith(_NOT_REACHED))


def _trial(quantizer: Quantizer, stopwatch: Stopwatch, probes: list[_Probe]) -> _Trial:
    """A trial in the way that suits a quantizer, by how long it takes and what it annotates."""
    trial = _Trial(quantizer, stopwatch, EACH, limit())
    if trial.is_slow():
        return attrs.evolve(trial, each=trial.limit, at_once=True)
    plain = [_first_about(op, probes) for op in _BEFORE_RELU]
    return attrs.evolve(trial, strict=_is_for_strict_exports(trial, plain))


def _first_about(op: Operator, probes: list[_Probe]) -> _Probe:
    return next(probe for probe in probes if probe.pattern == (op,))


def _is_for_strict_exports(trial: _Trial, probes: list[_Probe]) -> bool:
    """Whether more of the operators that most quantizers take are annotated where the export was strict.

    Only strict exports say of which module or function of torch an operator is (``source_fn_stack``).
    """
    annotated = []
    for strict in (False, True):
        answer = attrs.evolve(trial, strict=strict).answer(probes)
        if _is_out_of_time(answer):
            return False
        annotated.append(-1 if isinstance(answer, str) else sum(map(bool, answer)))
        if annotated[0] == len(probes):
            return False  # there is nothing more to annotate
    return annotated[True] > annotated[False]


def _probes() -> list[_Probe]:
    """The most telling ones first, in case there is no time for all."""
    alone = [[_Probe((op,), example) for example in operator_examples(op)] for op in OPERATORS]
    behind = [
        _Probe((op,), example, (first,))
        for op in OPERATORS
        if op not in _IN_FRONT
        for first, example in _first_that_fits(op)
    ]
    fused = [
        _Probe((op, operators.RELU), example)
        for op in _BEFORE_RELU
        for example in itertools.islice(operator_examples(op, operators.RELU), 1)
    ]
    firsts = [probe for each in alone for probe in each[:1]]
    return [*firsts, *fused, *behind, *(probe for each in alone for probe in each[1:])]


def _first_that_fits(op: Operator) -> Iterator[tuple[Operator, Example]]:
    found = ((first, example) for first in _IN_FRONT for example in operator_examples(first, op))
    return itertools.islice(found, 1)


def _rows(
    trial: _Trial, probes: list[_Probe], outcomes: list[Outcome], subject: Subject
) -> Iterator[Capability]:
    """The rows of all operators, in the order of operators."""
    found: dict[tuple[Operator, ...], list[tuple[_Probe, Outcome]]] = {}
    for probe, outcome in zip(probes, outcomes, strict=True):
        answers = found.setdefault(probe.pattern, [])
        # An operator of which some examples were reached is known by these; the first one is the plain call.
        if _is_reached(outcome) or not answers:
            answers.append((probe, outcome))
    reached = sum(map(_is_reached, outcomes))
    versions = ", ".join(f"{name} {version}" for name, version in subject.versions)
    how = (
        f"{datetime.date.today().isoformat()}, with {versions}"
        + "; all examples as one model" * trial.at_once
    )
    if reached < len(probes):
        how += f"; time was enough for {reached} of {len(probes)} examples"
    for pattern, answers in found.items():
        for row in _rows_of(trial.quantizer.name, pattern, answers, how):
            yield attrs.evolve(row, constraints=(*row.constraints, *_STRICT * trial.strict))


def _rows_of(
    name: str, pattern: tuple[Operator, ...], answers: list[tuple[_Probe, Outcome]], how: str
) -> Iterator[Capability]:
    """A row for each set of specs that the examples of a pattern were annotated with, and for no answer."""
    working = pattern[0]
    roles = {"output_activation", *(operand.role for operand in working.operands)}
    by_outcome: dict[str, list[tuple[_Probe, Outcome]]] = {}
    for probe, outcome in answers:
        if outcome:
            by_outcome.setdefault(repr(outcome), []).append((probe, outcome))
    for alike in by_outcome.values():
        specs, mine = alike[0][1], [probe for probe, _ in alike]
        others = [probe for probe, _ in answers if probe not in mine]
        only = f"in {len(mine)} of {len(answers)} examples" if others else ""
        if others and all(probe.in_front for probe in mine):
            only = "behind a quantized operator"
        text = f"it is called as in {_named(mine)}; and not as in {_named(others)}"
        is_known = not isinstance(specs, str)
        found = {} if isinstance(specs, str) else {role: specs[role] for role in ROLES if role in specs}
        yield Capability(
            backend=name,
            pattern="_".join(op.name for op in pattern),
            operators=tuple(op.name for op in pattern),
            overloads=working.overloads,
            functionals=working.functionals,
            modules=working.modules,
            # Of what is not known no config is taken.
            roles=tuple(role for role in ROLES if not is_known or role in roles | found.keys()),
            mode=_mode(found),
            specs=tuple(found.items()),
            constraints=(("depends_on_example", text),) if others else (),
            scope=only if is_known else f"not known {only}: {specs}".replace("  ", " ").replace(" :", ":"),
            probed=how,
        )


def _named(probes: Sequence[_Probe]) -> str:
    names = [f"{probe.label!r}" for probe in probes[:_MOST_NAMED]]
    return ", ".join(names) + f" and {len(probes) - _MOST_NAMED} more" * (len(probes) > _MOST_NAMED)


def _mode(specs: Mapping[Role, tuple[AllowedSpec, ...]]) -> Mode:
    if not specs.keys() & {"input_activation", "output_activation"}:
        return "weight_only" if specs else "static"
    is_dynamic = any(spec.is_dynamic for spec in specs.get("input_activation", ()))
    return "dynamic" if is_dynamic else "static"


@attrs.frozen(eq=False)
class _Trial:
    """Annotating examples with one quantizer, within the time that there is for all of them."""

    quantizer: Quantizer
    stopwatch: Stopwatch
    each: float
    limit: float
    strict: bool = False
    at_once: bool = False

    def is_slow(self) -> bool:
        """Whether annotating takes its time even where there is no operator.

        CoreML's exports hundreds of patterns anew for each model.
        """
        nothing = _Probe((), Example("nothing", torch.nn.Identity(), (torch.zeros(1),)))
        return _is_out_of_time(attrs.evolve(self, each=FOR_NOTHING).answer([nothing]))

    def outcomes(self, probes: list[_Probe]) -> Iterator[Outcome]:
        """The outcome of each probe."""
        size, at = len(probes) if self.at_once else _FIRST, 0
        while at < len(probes):
            found = self._outcomes_of(probes[at : at + size])
            yield from found
            at += size
            size = _FIRST if any(isinstance(outcome, str) for outcome in found) else 2 * size

    def _outcomes_of(self, batch: list[_Probe]) -> list[Outcome]:
        """The outcomes of a batch, which is divided until what gives no answer is by itself."""
        begin = self.stopwatch.seconds
        answer = self.answer(batch)
        if not isinstance(answer, str):
            return answer
        if len(batch) == 1:
            return [answer]
        # Halves find an error that comes soon in the fewest steps, and one that takes its time in the most.
        is_soon = self.stopwatch.seconds - begin < self.each / 2
        step = (len(batch) + 1) // 2 if is_soon else 1
        parts = (batch[at : at + step] for at in range(0, len(batch), step))
        return [outcome for part in parts for outcome in self._outcomes_of(part)]

    def answer(self, batch: Sequence[_Probe]) -> list[Outcome] | str:
        """The outcomes of some probes as one model; a text where there are none."""
        if self.stopwatch.seconds >= self.limit:
            return f"{_NOT_REACHED} ({self.limit:g} s)"
        both = side_by_side([probe.example for probe in batch])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(both.module, both.inputs, strict=self.strict)
        seconds = max(0.1, min(self.each, self.limit - self.stopwatch.seconds))
        return in_child(lambda: _annotated(self.quantizer, program, batch), seconds, self.stopwatch)


def _annotated(quantizer: Quantizer, program: Any, batch: Sequence[_Probe]) -> list[Outcome]:
    """Annotate a model of several examples, and read the outcome of each."""
    annotated = annotate_copy(program, quantizer, strict=False)
    specs = {each: group.spec for _, groups in annotated.groups for group in groups for each in group.members}
    graph = annotated.model.graph
    owners = (number for number, probe in enumerate(batch) for _ in probe.example.inputs)
    inputs = (node for node in graph.nodes if node.op == "placeholder")
    owner: dict[Node, int] = dict(zip(inputs, owners, strict=True))
    nodes: list[list[Node]] = [[] for _ in batch]
    for node in graph.nodes:
        if node.op == "call_function":
            number = next((owner[each] for each in node.all_input_nodes if each in owner), None)
            if number is not None:
                owner[node] = number
                nodes[number].append(node)
    return [_outcome(probe, found, specs) for probe, found in zip(batch, nodes, strict=True)]


def _outcome(probe: _Probe, nodes: list[Node], specs: dict[Any, Any]) -> Outcome:
    """The specs around the operators that a probe is about, by role."""
    overloads = {overload for op in probe.pattern for overload in op.overloads}
    in_front = {overload for op in probe.in_front for overload in op.overloads}
    whole = {node for node in nodes if overload_name(node) in overloads}
    # Where the quantizer writes it in another form, all that is there is that form.
    whole = whole or {node for node in nodes if overload_name(node) not in in_front}
    if not any(annotation_of(node) for node in whole):
        return {}
    inner = [(a, b) for b in whole for a in b.all_input_nodes if a in whole]
    if len(probe.pattern) > 1 and any(edge in specs or edge[0] in specs for edge in inner):
        return {}  # each is quantized by itself, and has a row
    if any(_is_fused(node, in_front, specs) for node in whole):
        return {}  # the pattern of both has a row
    found: dict[str, list[AllowedSpec]] = {}
    for edge_or_node, spec in specs.items():
        if isinstance(edge_or_node, Node):
            role = "output_activation" if edge_or_node in whole else ""
        else:
            source, node = edge_or_node
            role = _role(source, node, probe) if node in whole and source not in whole else ""
        # What is derived from the others is not asked for.
        if role and not isinstance(spec, DerivedQuantizationSpec):
            found.setdefault(role, []).append(_allowed(spec))
    # An operator that reads what another one made quantized reads it quantized, and may not say so again.
    made = (each for node in whole for each in node.all_input_nodes if each in specs and each not in whole)
    for source in made:
        found.setdefault("input_activation", []).append(_allowed(specs[source]))
    return {role: tuple(dict.fromkeys(each)) for role, each in found.items()}


def _is_fused(node: Node, in_front: set[str], specs: dict[Any, Any]) -> bool:
    """Whether an operator is quantized together with the one in front, with no quantized tensor between."""
    return any(
        annotation_of(source) is not None and source not in specs and (source, node) not in specs
        for source in node.all_input_nodes
        if overload_name(source) in in_front
    )


def _role(source: Node, node: Node, probe: _Probe) -> str:
    """The role of a tensor that an operator reads."""
    with contextlib.suppress(AttributeError):  # a call of something that has no schema
        given = [*arguments_of(node).values()]
        for operand in probe.pattern[0].operands:
            value = given[operand.position] if operand.position < len(given) else None
            if value is source or (isinstance(value, (list, tuple)) and source in value):
                return operand.role
    return "weight" if is_constant(source) else "input_activation"


def _allowed(spec: Any) -> AllowedSpec:
    """The family that holds this one spec; of fixed parameters, their integers."""
    if isinstance(spec, QuantizationSpec):
        return AllowedSpec.of(spec)
    integers = (dtype_name(spec.dtype), spec.quant_min, spec.quant_max)
    return AllowedSpec(*integers, ("per_tensor",), exact_range=True)
