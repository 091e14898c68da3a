"""Drawing graphs of all rows of a table together, and trying one: quantized, lowered, run and compared.

What is compared is the program with the converted model, and that with the model in float. A graph that the
target does not run in float either says nothing about the backend.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from torchquilt.config import QuantizationConfig
from torchquilt.graph.values import overload_name
from torchquilt.pt2e.calibrate import calibrate
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.prepare import prepare_pt2e
from torchquilt.testing.configs import configs_of
from torchquilt.testing.graphs import AGAIN, OTHERS, Graph, Plan, Step, patterns_of
from torchquilt.testing.plugin import Lowering
from torchquilt.testing.subject import Subject, installed, named, row_id
from torchquilt.testing.targets import installed_lowerings
from torchquilt.testing.trials import sqnr

#: What a program has to agree with the converted model in, in dB; or else it differs by a step of rounding.
LEAST_AGREEMENT = 40.0
#: What a converted model has to agree with the model in float in. Noise adds up over the steps of a graph.
LEAST_SQNR = 8.0
#: Of numbers whose size is about 1, what is lost in the rounding of float32 and its sums.
_NOTHING = 1e-4

_SHAPES = ((1, 4, 6, 6), (2, 4, 6, 6), (1, 8, 5, 5), (2, 5, 8), (1, 5, 8), (4, 8), (1, 8))
_MOST_STEPS = 5


def configs_by_name(subject: Subject) -> dict[str, QuantizationConfig]:
    """What can be asked for: the presets of a backend, or else a config that each of its rows takes."""
    if subject.cls.PRESETS:
        return {name: make() for name, make in subject.cls.PRESETS.items()}
    return {row_id(row): config for row in subject.rows for config in configs_of(row)[:1]}


def plans(
    subject: Subject, names: Sequence[str], *, mixed: bool | None = None, most_steps: int = _MOST_STEPS
) -> st.SearchStrategy[Plan]:
    """Plans of graphs.

    Args:
        subject: the backend.
        names: of the configs that are asked for, as in :func:`configs_by_name`.
        mixed: whether single steps are asked for otherwise; None for both.
        most_steps: how many steps a graph has at most.
    """
    patterns = sorted(patterns_of(subject.table))
    # Rows are what is tested; what stands between them is there for their sake.
    name = st.one_of(*[st.sampled_from(patterns)] * 3, *[st.sampled_from([*sorted(OTHERS), AGAIN])] * 2)
    way, back = st.just(0) | st.integers(0, 6), st.just(0) | st.integers(0, 4)
    step = st.builds(Step, name, way, st.tuples(back, back, back), st.integers(0, 2))
    one = st.tuples(st.sampled_from(names))
    several = st.tuples(st.sampled_from(names), *[st.sampled_from(["", *names])] * 2)
    return st.builds(
        Plan,
        shape=st.sampled_from(_SHAPES),
        steps=st.lists(step, min_size=1, max_size=most_steps).map(tuple),
        asks=one if mixed is False else several if mixed else st.one_of(one, several),
        channels_last=st.booleans(),
        seed=st.integers(0, 2**16),
    )


@attrs.frozen
class Outcome:
    """What came of a graph.

    Args:
        problems: what is wrong, one sentence each; empty where it is right.
        is_tried: whether there was something to compare.
    """

    problems: tuple[str, ...] = ()
    is_tried: bool = True


NOT_TRIED = Outcome(is_tried=False)


def tried(plan: Plan, name: str, is_installed: bool, given: Mapping[str, Lowering]) -> Outcome:
    """Try a plan in this process, for a backend that is named; this can be called in another process.

    Args:
        plan: the graph, and how it is asked for.
        name: of the backend, or ``package.module:Class``.
        is_installed: which of the two.
        given: lowerings that are not those of installed plugins.
    """
    subject = installed(name) if is_installed else named(name)
    graph = Graph(plan, patterns_of(subject.table))
    inputs = tuple(graph.inputs)
    if not graph.steps or not all(torch.isfinite(one).all() for one in _floats(graph(*inputs))):
        return NOT_TRIED
    try:
        exported = torch.export.export(graph, inputs)
    except Exception:  # torch raises what it likes for what it cannot export
        return NOT_TRIED
    converted = _converted(exported, graph, subject)
    return _compared(graph, exported, converted, {**installed_lowerings(subject), **given})


def _converted(exported: ExportedProgram, graph: Graph, subject: Subject) -> GraphModule:
    configs = {**configs_by_name(subject), "": None}
    quantizer = subject.cls().set_global(configs[graph.plan.asks[0]])
    for module, ask in graph.asked():
        quantizer.set_module_name(module, configs[ask])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing may come of a rule
        prepared = prepare_pt2e(exported, quantizer, activation_observer="minmax", strict=False)
    return convert_pt2e(calibrate(prepared, [tuple(graph.inputs)]))


def _compared(
    graph: Graph, exported: ExportedProgram, converted: GraphModule, lowerings: Mapping[str, Lowering]
) -> Outcome:
    inputs = tuple(graph.inputs)
    with torch.no_grad():
        reference, expected = _floats(graph(*inputs)), _floats(converted(*inputs))
    problems = [
        f"output {number}: {ratio:.1f} dB between the converted model and the one in float"
        for number, (one, other) in enumerate(zip(reference, expected, strict=True))
        if (ratio := sqnr(one, other)) < LEAST_SQNR and _largest(one, other) > _largest_step(converted)
    ]
    for target, lowering in lowerings.items():
        try:
            found = _floats(lowering(converted, inputs))
        except Exception as error:  # whatever a runtime raises
            if not _runs_in_float(exported, lowering, inputs):
                return NOT_TRIED
            problems.append(f"{target}: {type(error).__name__}: {error}")
            continue
        problems += [f"{target}, {text}" for text in _differences(expected, found, converted)]
    return Outcome(tuple(problems))


def _runs_in_float(exported: ExportedProgram, lowering: Lowering, inputs: tuple[Any, ...]) -> bool:
    module = exported.module()
    assert isinstance(module, GraphModule)
    try:
        lowering(module, inputs)
    except Exception:  # whatever a runtime raises
        return False
    return True


def _differences(
    expected: list[torch.Tensor], found: list[torch.Tensor], converted: GraphModule
) -> list[str]:
    """Where a program computes something else than the converted model, beyond one step of rounding."""
    if [one.shape for one in expected] != [one.shape for one in found]:
        return [f"shapes: {[[*one.shape] for one in found]} for {[[*one.shape] for one in expected]}"]
    steps = _steps_of_outputs(converted)
    texts = []
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        ratio, largest = sqnr(one, other), _largest(one, other)
        allowed = max(_NOTHING, 1.001 * steps.get(number, 0.0))
        if ratio < LEAST_AGREEMENT and not largest <= allowed:
            texts.append(
                f"output {number}: {ratio:.1f} dB between program and converted model, largest difference "
                f"{largest:.3g}" + (f", of steps of {steps[number]:.3g}" if number in steps else "")
            )
    return texts


def _steps_of_outputs(converted: GraphModule) -> dict[int, float]:
    """Number of an output, of those in floating point → its scale, where it is dequantized last."""
    outputs = pytree.tree_leaves(converted.graph.output_node().args)
    floats = [one for one in outputs if _is_float_node(one)]
    return {
        number: float(node.args[1])
        for number, node in enumerate(floats)
        if overload_name(node) == "quantized_decomposed.dequantize_per_tensor.default"
    }


def _is_float_node(node: Any) -> bool:
    value = getattr(node, "meta", {}).get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _largest_step(converted: GraphModule) -> float:
    """The largest scale of an activation: what is smaller than that has no numbers to be right in."""
    steps = [
        float(node.args[1])
        for node in converted.graph.nodes
        if overload_name(node) == "quantized_decomposed.dequantize_per_tensor.default"
    ]
    return max(steps, default=_NOTHING)


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference; infinite where one of the two is not finite."""
    difference = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    return difference if math.isfinite(difference) else math.inf


def _floats(outputs: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [one.detach() for one in leaves if isinstance(one, torch.Tensor) and one.is_floating_point()]
