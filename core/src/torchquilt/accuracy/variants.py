"""Variants of a model from one calibration: other decisions, and ranges of what was observed already.

What a float tensor holds does not depend on what is quantized. So each tensor is observed once, whichever
variants ask for its range, and is known by what computes it.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import attrs
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from torchquilt._internal.garbage_collection import garbage_collector_disabled
from torchquilt._internal.torch_defaults import default_global_state
from torchquilt.accuracy.running import checked_batches
from torchquilt.accuracy.units import Choice, Composition, units_of, weight_shares
from torchquilt.errors import AccuracyError
from torchquilt.graph.code_generation import generate_code, outdate
from torchquilt.graph.edits import copy_model
from torchquilt.graph.node_values import FOLDED
from torchquilt.graph.subgraphs import regions
from torchquilt.ledger.ledger import Ledger
from torchquilt.observers import Observer, ObserverFactory, observer_factory
from torchquilt.pt2e.annotate import Annotated, annotate_copy
from torchquilt.pt2e.calibration.calibrate import calibrate
from torchquilt.pt2e.calibration.merging import Calibration
from torchquilt.pt2e.convert import convert_pt2e
from torchquilt.pt2e.model_record import keep_initial_state, set_stage
from torchquilt.pt2e.observer_points import ObservedPoint
from torchquilt.pt2e.prepare import record_of, with_points


@attrs.frozen
class Size:
    """Cost of a variant, as far as its decisions say it.

    Args:
        bytes: of its parameters, weights of 4 bits counted as such.
        macs_float: multiply-adds in float, for the example shapes.
    """

    bytes: int
    macs_float: int


@attrs.frozen(eq=False)
class Decided:
    """Decisions about a model: annotations, and what they amount to.

    Args:
        annotated: the annotated copy of the model.
        units: name of each annotated node, with the path of its subgraph → its unit.
    """

    annotated: Annotated
    units: Mapping[str, str]

    @property
    def ledger(self) -> Ledger:
        """Every decision."""
        return self.annotated.ledger

    def outcome(self) -> dict[str, tuple[Any, ...]]:
        """Unit → what is quantized in it, by whom and how; equal where two decisions amount to the same."""
        found: dict[str, list[Any]] = {}
        for row in self.ledger.quantized:
            tensors = tuple((one.edge, one.spec) for one in row.tensors)
            unit = self.units.get(row.forms[-1][0], row.module)
            found.setdefault(unit, []).append((row.node, row.quantizer, row.pattern, tensors))
        return {unit: tuple(rows) for unit, rows in found.items()}

    def shares(self) -> dict[str, Fraction]:
        """Name of each stored tensor that is quantized → the share of its bits that its integers have."""
        found: dict[str, Fraction] = {}
        for _, groups in self.annotated.groups:
            found |= weight_shares(groups)
        return found

    def size(self) -> Size:
        """Bytes of parameters, and multiply-adds in float."""
        shares = self.shares()
        sizes = {name: size for row in self.ledger for name, size in row.parameters}
        stored = sum(math.ceil(size * shares.get(name, 1)) for name, size in sizes.items())
        return Size(stored, sum(row.macs for row in self.ledger.left_in_float))


class Variants:
    """Makes variants of one model.

    Args:
        exported: the float model.
        quantizer: the user's.
        calibration: batches, or a :class:`torchquilt.Calibration` of the model prepared with that quantizer.
        activation_observer: as for :func:`torchquilt.prepare_pt2e`.
    """

    def __init__(
        self,
        exported: ExportedProgram | GraphModule,
        quantizer: object,
        calibration: Iterable[object] | Calibration,
        activation_observer: str | ObserverFactory,
    ) -> None:
        self.model = exported.module() if isinstance(exported, ExportedProgram) else exported
        self._make = observer_factory(activation_observer)
        self.composition = Composition(quantizer, self.model)
        self._seen = ObservedTensors()
        #: calibration data, which can be read again; None where only its statistics are known
        self.batches: Iterable[object] | None = None
        if isinstance(calibration, Calibration):
            prepared = self._prepared(self.decided({}))
            calibration.add_to(prepared)
            self._seen.take(prepared)
        else:
            batches = checked_batches(calibration, self.model)
            # A generator can be read once, and a variant may ask for a tensor that no other did.
            self.batches = list(batches) if iter(batches) is batches else batches

    def decided(self, choices: Mapping[str, Choice]) -> Decided:
        """Decide as the user's quantizer does, but for some units."""
        with default_global_state(), _without_warnings():
            annotated = annotate_copy(self.model, self.composition.with_choices(choices), strict=False)
        units: dict[str, str] = {}
        of_node = units_of(annotated)
        for region, _ in annotated.groups:
            units |= {region.name_of(n): of_node[n] for n in region.module.graph.nodes if n in of_node}
        return Decided(annotated, units)

    def prepared(self, decided: Decided, *, progress: bool = False) -> GraphModule:
        """A calibrated model with these decisions. It takes over the annotated copy.

        Args:
            decided: the decisions.
            progress: show how far it is, where data has to be observed.
        """
        prepared = self._prepared(decided)
        missing = self._seen.give(prepared)
        if missing:
            self._observe(prepared, missing, progress=progress)
            self._seen.give(prepared)
        return prepared

    def converted(self, prepared: GraphModule) -> GraphModule:
        """The Q/DQ model; operators that calibration never reached stay in float."""
        with _without_warnings():
            return convert_pt2e(prepared, unseen="float")

    def _prepared(self, decided: Decided) -> GraphModule:
        with default_global_state(), garbage_collector_disabled():
            prepared = with_points(decided.annotated, self._make)
            set_stage(prepared, "prepared", record_of(decided.annotated))
            keep_initial_state(prepared)
            generate_code(prepared)
        return prepared

    def _observe(self, prepared: GraphModule, missing: frozenset[str], *, progress: bool) -> None:
        """Show the batches to observers of the tensors that were not observed yet, and to no others."""
        if self.batches is None:
            raise AccuracyError(
                "This calibration does not say the ranges of all tensors that other decisions quantize.",
                expected="batches of inputs as calibration data",
                got=f"a Calibration without {len(missing)} tensors that are observed now",
                remedy="pass the batches, so that what was not observed yet can be",
            )
        observing = copy_model(prepared)
        observing.meta.update(prepared.meta)
        _observe_alone(observing, missing)
        calibrate(observing, self.batches, progress=progress)
        self._seen.take(observing)


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class ObservedTensors:
    """Statistics of float tensors, by what computes them."""

    def __init__(self) -> None:
        self._observers: dict[str, Observer] = {}

    def take(self, calibrated: GraphModule) -> None:
        """Take what the points of a calibrated model saw; tensors of one group have its statistics."""
        for _, _, point, key in _sites(calibrated):
            self._observers.setdefault(key, point.observer)

    def give(self, prepared: GraphModule) -> frozenset[str]:
        """Let each point of a prepared model have seen its tensors; return those that were not observed."""
        keys: dict[ObservedPoint, dict[str, None]] = {}
        for _, _, point, key in _sites(prepared):
            keys.setdefault(point, {})[key] = None
        missing = {key for wanted in keys.values() for key in wanted if key not in self._observers}
        for point, wanted in keys.items():
            if missing.isdisjoint(wanted):
                seen = dict.fromkeys(self._observers[key] for key in wanted)
                point.observer = _merged(point, tuple(seen))
        return frozenset(missing)


def _merged(point: ObservedPoint, seen: tuple[Observer, ...]) -> Observer:
    """An observer of the kind and spec of a point that saw what others did."""
    kind, spec = type(point.observer), point.observer.spec
    found = kind.from_state(spec, {**point.observer.settings(), **seen[0].state()})
    for other in seen[1:]:
        if kind.order_matters:
            raise AccuracyError(
                "Tensors that share parameters were observed apart, and this observer cannot merge that.",
                node=", ".join(point.names),
                expected="an observer that does not depend on the order of the data",
                got=kind.__name__,
                remedy="use activation_observer='histogram' or 'minmax'",
            )
        found.merge(kind.from_state(spec, {**point.observer.settings(), **other.state()}))
    return found


def _sites(prepared: GraphModule) -> Iterator[tuple[GraphModule, Node, ObservedPoint, str]]:
    """Each call of a point that looks at data it has not seen, with the key of the tensor that it sees."""
    for region in regions(prepared):
        points = {
            name: module
            for name, module in region.module.named_children()
            if isinstance(module, ObservedPoint)
        }
        keys = _keys(region.path, region.module)
        for node in region.module.graph.nodes:
            if node.op == "call_module" and node.target in points and len(node.args) == 1:
                point = points[str(node.target)]
                kind = f"{type(point.observer).__name__} {point.observer.settings()} {_layout(point)}"
                yield region.module, node, point, f"{keys[node]} {kind}"


def _layout(point: ObservedPoint) -> str:
    """The elements that have a statistic of their own: parameters of other bits follow from the same."""
    spec = point.observer.spec
    return f"{spec.granularity} {spec.ch_axis} {spec.group_size}"


def _keys(path: str, model: GraphModule) -> dict[Node, str]:
    """Node → a text that is equal where the same is computed from the same inputs and weights."""
    keys: dict[Node, str] = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and len(node.all_input_nodes) == 1:
            keys[node] = keys[node.all_input_nodes[0]]  # a point, which returns what it sees
            continue

        def key_of(source: Node) -> str:
            return keys[source]

        inputs = str(_mapped((node.args, node.kwargs), key_of))
        name = str(node.target) if node.op != "placeholder" else f"{path}:{node.target}"
        # A folded weight has the name of the one that it was computed from.
        inputs += "".join(norm.name for norm in node.meta.get(FOLDED, ()))
        keys[node] = hashlib.sha256(f"{node.op} {name} {inputs}".encode()).hexdigest()[:24]
    return keys


def _mapped(value: Any, key_of: Any) -> Any:
    if isinstance(value, Node):
        return key_of(value)
    if isinstance(value, (list, tuple)):
        return [_mapped(one, key_of) for one in value]
    if isinstance(value, dict):
        return {name: _mapped(one, key_of) for name, one in value.items()}
    return value


def _observe_alone(observing: GraphModule, missing: frozenset[str]) -> None:
    """Give each tensor that is missing a point of its own, and take all other points away."""
    alone: dict[str, ObservedPoint] = {}
    for number, (owner, node, point, key) in enumerate(list(_sites(observing))):
        if key in missing and key not in alone:
            alone[key] = ObservedPoint(point.spec, point.observer.fresh(), point.names)
            name = f"observing_{number}"
            owner.add_submodule(name, alone[key])
            node.target = name
            outdate(owner)
    kept = {id(point) for point in alone.values()}
    for region in regions(observing):
        for node in list(region.module.graph.nodes):
            module = region.module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, ObservedPoint) and id(module) not in kept:
                node.replace_all_uses_with(node.all_input_nodes[0])
                region.module.graph.erase_node(node)
                outdate(region.module)
        for name, module in list(region.module.named_children()):
            if isinstance(module, ObservedPoint) and id(module) not in kept:
                region.module.delete_submodule(name)
    generate_code(observing)
