"""Drawing graphs of all rows of a table together, and trying one: quantized, lowered, run and compared.

What is compared is the program with the converted model, and that with the model in float. A graph that the
target does not run in float either says nothing about the backend.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import attrs
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from torchquilt._internal.torch_private import pytree
from torchquilt.graph.qdq import dequantize_of
from torchquilt.pt2e.calibration.calibrate import calibrate
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.prepare import prepare_pt2e
from torchquilt.spec.config import QuantizationConfig
from torchquilt.testing.configs import configs_of
from torchquilt.testing.graphs import AGAIN, OTHERS, Graph, Graphs, Plan, Step, patterns_of
from torchquilt.testing.lowering import Lowering
from torchquilt.testing.process import Process
from torchquilt.testing.subject import Subject, installed, named, row_id
from torchquilt.testing.targets import installed_lowerings
from torchquilt.testing.trials import sqnr

#: What a program has to agree with the converted model in, in dB; or else it differs by a step of rounding.
LEAST_AGREEMENT = 40.0
#: What a converted model has to agree with the model in float in. Noise adds up over the steps of a graph.
LEAST_SQNR = 8.0
#: An output that moves by itself nearly so far says nothing: the noise of several steps adds up.
_MARGIN = 10.0
#: Of numbers whose size is about 1, what is lost in the rounding of float32 and its sums.
_NOTHING = 1e-4
#: The same of half precision, in steps of its numbers just above 1.
_STEPS_OF_HALF = 4

_SHAPES = ((1, 4, 6, 6), (2, 4, 6, 6), (1, 8, 5, 5), (2, 5, 8), (1, 5, 8), (4, 8), (1, 8))
_MOST_STEPS = 5
#: How many graphs are one program: to lower one costs a second, and more than ten cost more than each alone.
_BATCH = 8


def configs_by_name(subject: Subject) -> dict[str, QuantizationConfig]:
    """Configs by name: the presets of a backend, or else a config that each of its rows takes."""
    if subject.cls.PRESETS:
        return {name: make() for name, make in subject.cls.PRESETS.items()}
    return {row_id(row): config for row in subject.rows for config in configs_of(row)[:1]}


def batches(
    subject: Subject,
    names: Sequence[str],
    seed: int,
    count: int,
    *,
    mixed: bool | None = None,
    dtype: str = "float32",
) -> Iterator[list[Plan]]:
    """Plans of graphs, in batches that can be one program: the first ask of each is the same.

    Args:
        subject: the backend.
        names: of the configs that are asked for, as in :func:`configs_by_name`.
        seed: the same seed draws the same plans.
        count: how many plans in all.
        mixed: whether single steps are asked for otherwise; None for both.
        dtype: of the inputs and layers, as for :class:`torchquilt.testing.graphs.Plan`.
    """
    drawn = Random(seed)
    while count > 0:
        ask = drawn.choice(names)
        plans = [_plan(subject, names, ask, mixed, drawn) for _ in range(min(count, _BATCH))]
        yield [attrs.evolve(plan, dtype=dtype) for plan in plans]
        count -= _BATCH


def _plan(subject: Subject, names: Sequence[str], ask: str, mixed: bool | None, drawn: Random) -> Plan:
    others = () if mixed is False or (mixed is None and drawn.random() < 0.5) else ("", *names)
    return Plan(
        shape=drawn.choice(_SHAPES),
        steps=tuple(_step(subject, drawn) for _ in range(drawn.randint(1, _MOST_STEPS))),
        asks=(ask, *(drawn.choice(others) for _ in range(2) if others)),
        channels_last=drawn.random() < 0.25,
        seed=drawn.randrange(2**16),
    )


def _step(subject: Subject, drawn: Random) -> Step:
    # Rows are what is tested; what stands between them is there for their sake.
    names = sorted(patterns_of(subject.table)) if drawn.random() < 0.6 else [*sorted(OTHERS), AGAIN]
    first = drawn.choice([0, 0, 0, 0, 1, 2, 3, -1])
    return Step(
        drawn.choice(names),
        way=drawn.choice([0, drawn.randint(0, 6)]),
        back=(first, drawn.randint(0, 4), drawn.randint(0, 4)),
        ask=drawn.randint(0, 2),
    )


def smallest(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """A plan that fails as well, of which nothing more can be taken away.

    Args:
        plan: it fails.
        fails: whether another one does.
    """
    for smaller in _smaller(plan):
        if fails(smaller):
            return smallest(smaller, fails)
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans that are a bit simpler, those that take away most first."""
    steps = plan.steps
    for number in range(len(steps)):
        if len(steps) > 1:
            yield attrs.evolve(plan, steps=steps[:number] + steps[number + 1 :])
    simpler = [attrs.evolve(plan, asks=plan.asks[:1]), attrs.evolve(plan, channels_last=False)]
    for number, step in enumerate(steps):
        plainer = attrs.evolve(step, way=0), attrs.evolve(step, back=(0, 0, 0))
        simpler += [
            attrs.evolve(plan, steps=(*steps[:number], other, *steps[number + 1 :])) for other in plainer
        ]
    yield from (other for other in simpler if other != plan)


@attrs.frozen
class Outcome:
    """Outcome of trying a graph.

    Args:
        problems: what is wrong, one sentence each; empty where it is right.
        is_tried: whether there was something to compare.
    """

    problems: tuple[str, ...] = ()
    is_tried: bool = True


NOT_TRIED = Outcome(is_tried=False)


def tried(
    plans: Sequence[Plan], name: str, is_installed: bool, given: Mapping[str, Lowering]
) -> tuple[Outcome, ...]:
    """Try plans together in one program, in this process; this can be called in another process.

    Where that fails as a whole, they are tried by halves.

    Args:
        plans: the graphs, and how they are asked for; their first asks are the same.
        name: of the backend, or ``package.module:Class``.
        is_installed: which of the two.
        given: lowerings that are not those of installed plugins.
    """
    subject = installed(name) if is_installed else named(name)
    patterns = patterns_of(subject.table)
    graphs = [Graph(plan, patterns) for plan in plans]
    fit = [graph for graph in graphs if graph.steps and _is_finite(graph)]
    lowerings = {**installed_lowerings(subject), **given}
    found = dict(zip(map(id, fit), _tried(fit, subject, lowerings), strict=True))
    return tuple(found.get(id(graph), NOT_TRIED) for graph in graphs)


def _is_finite(graph: Graph) -> bool:
    return all(torch.isfinite(one).all() for one in _floats(graph(*graph.inputs)))


def _tried(graphs: list[Graph], subject: Subject, lowerings: Mapping[str, Lowering]) -> list[Outcome]:
    if not graphs:
        return []
    inputs = tuple(value for graph in graphs for value in graph.inputs)
    try:
        exported = torch.export.export(Graphs(graphs), inputs)
        converted = _converted(exported, graphs, subject)
        programs = {target: lowering(converted, inputs) for target, lowering in lowerings.items()}
    except Exception as error:  # torch and runtimes raise what they like
        if len(graphs) > 1:
            half = len(graphs) // 2
            return [
                *_tried(graphs[:half], subject, lowerings),
                *_tried(graphs[half:], subject, lowerings),
            ]
        text = f"{type(error).__name__}: {error}"
        return [Outcome((text,)) if _runs_in_float(graphs[0], lowerings) else NOT_TRIED]
    with torch.no_grad():
        expected = converted(*inputs)
    return [
        Outcome(
            (
                *_noise(graph, expected[number], converted),
                *(
                    f"{target}, {text}"
                    for target, found in programs.items()
                    for text in _differences(
                        expected[number],
                        found[number],
                        _steps(converted, expected, number),
                        _lost_in_rounding(graph.plan.dtype),
                    )
                ),
            )
        )
        for number, graph in enumerate(graphs)
    ]


def _converted(exported: ExportedProgram, graphs: Sequence[Graph], subject: Subject) -> GraphModule:
    configs = {**configs_by_name(subject), "": None}
    quantizer = subject.cls().set_global(configs[graphs[0].plan.asks[0]])
    for number, graph in enumerate(graphs):
        for module, ask in graph.asked():
            quantizer.set_module_name(f"graphs.{number}.{module}", configs[ask])
    inputs = tuple(value for graph in graphs for value in graph.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing may come of a rule
        prepared = prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
    return convert_pt2e(calibrate(prepared, [inputs]))


def _noise(graph: Graph, expected: Any, converted: GraphModule) -> Iterator[str]:
    """Outputs in which the converted model is far from the float model, by more than a step of rounding.

    One that moves as far by itself, when what goes in is moved by half a step of eight bits, says nothing:
    the inverse of what is nearly zero.
    """
    floats, moved = (_floats(graph(*inputs)) for inputs in (graph.inputs, _moved(graph.inputs)))
    for number, (one, near, other) in enumerate(zip(floats, moved, _floats(expected), strict=True)):
        ratio = sqnr(one, other)
        says_something = sqnr(one, near) >= LEAST_SQNR + _MARGIN
        if ratio < LEAST_SQNR and says_something and _largest(one, other) > 1.001 * _largest_step(converted):
            yield f"output {number}: {ratio:.1f} dB between the converted model and the one in float"


def _moved(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Inputs moved by half a step of eight bits over their range, up and down by turns."""
    moved = []
    for value in inputs:
        signs = 1 - 2 * (torch.arange(value.numel()) % 2).reshape(value.shape)
        moves = value.is_floating_point() and value.numel() > 0
        step = (value.max() - value.min()) / 510 if moves else 0
        moved.append(value + (signs * step).to(value.dtype))
    return moved


def _runs_in_float(graph: Graph, lowerings: Mapping[str, Lowering]) -> bool:
    """Whether torch exports a graph, and each target runs it as it is."""
    inputs = tuple(graph.inputs)
    try:
        module = torch.export.export(Graphs([graph]), inputs).module()
        assert isinstance(module, GraphModule)
        for lowering in lowerings.values():
            lowering(module, inputs)
    except Exception:  # torch and runtimes raise what they like
        return False
    return True


def _lost_in_rounding(dtype: str) -> float:
    if dtype == "float32":
        return _NOTHING
    return _STEPS_OF_HALF * torch.finfo(getattr(torch, dtype)).eps


def _differences(expected: Any, found: Any, steps: Mapping[int, float], lost: float) -> Iterator[str]:
    """Outputs in which a program differs from the converted model, beyond one step of rounding."""
    pairs = zip(_floats(expected), _floats(found), strict=True)
    for number, (one, other) in enumerate(pairs):
        if one.shape != other.shape:
            yield f"output {number}: shape {[*other.shape]} instead of {[*one.shape]}"
            continue
        ratio, largest = sqnr(one, other), _largest(one, other)
        if ratio >= LEAST_AGREEMENT or largest <= max(lost, 1.001 * steps.get(number, 0.0)):
            continue
        text = f"output {number}: {ratio:.1f} dB between program and converted model, by up to {largest:.3g}"
        yield text + (f", of steps of {steps[number]:.3g}" if number in steps else "")


def _steps(converted: GraphModule, expected: Sequence[Any], graph: int) -> dict[int, float]:
    """Number of a graph's output in floating point → its scale, where it is dequantized last.

    Args:
        converted: the model of all graphs.
        expected: what it returns.
        graph: the number of the graph.
    """
    begin, end = (sum(len(pytree.tree_leaves(one)) for one in expected[:last]) for last in (graph, graph + 1))
    outputs = pytree.tree_leaves(converted.graph.output_node().args)[begin:end]
    floats = [one for one in outputs if _is_float_node(one)]
    scales = enumerate(map(_scale, floats))
    return {number: scale for number, scale in scales if scale is not None}


def _scale(node: Any) -> float | None:
    """The scale of the tensor that a node dequantizes, if it is one fixed number."""
    told = dequantize_of(node)
    return told.scale if told is not None and told.has_one_scale else None


def _is_float_node(node: Any) -> bool:
    value = getattr(node, "meta", {}).get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _largest_step(converted: GraphModule) -> float:
    """The largest scale of an activation: what is smaller than that has no numbers to be right in."""
    return max(filter(None, map(_scale, converted.graph.nodes)), default=_NOTHING)


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; infinite where one of the two is not finite."""
    difference = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    return difference if math.isfinite(difference) else math.inf


def _floats(outputs: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [one.detach() for one in leaves if isinstance(one, torch.Tensor) and one.is_floating_point()]


def failures(
    plans: Sequence[Plan],
    subject: Subject,
    process: Process,
    given: Mapping[str, Lowering],
    *,
    shrink: bool = True,
) -> list[str]:
    """Try plans in another process. A text for each that fails, with the smallest plan that does.

    Args:
        plans: as for :func:`tried`.
        subject: the backend.
        process: the process.
        given: lowerings that are not those of installed plugins.
        shrink: make smaller what fails.
    """

    def outcome(*some: Plan) -> tuple[Outcome, ...]:
        try:
            found: tuple[Outcome, ...] = process.call(
                tried, some, subject.name, subject.backend is not None, given
            )
        except AssertionError as error:  # the process ended, which says nothing of which of them is why
            return (
                tuple(one for plan in some for one in outcome(plan))
                if len(some) > 1
                else (Outcome((str(error),)),)
            )
        return found

    texts = []
    for plan, found in zip(plans, outcome(*plans), strict=True):
        if found.problems:
            # A plan may fail beside others alone; then that is what is told.
            least = smallest(plan, lambda other: bool(outcome(other)[0].problems)) if shrink else plan
            problems = outcome(least)[0].problems or found.problems
            texts.append("\n".join([repr(least), *problems]))
    return texts
