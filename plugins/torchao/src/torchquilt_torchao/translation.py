"""Translation of torchao's annotations and specs into torchquilt's.

A spec of torchao names the class that observes a tensor. What that class and its arguments say about the
integers (the smallest scale, a reduced range, fixed parameters) is read from it; how it finds a range is not,
since that is chosen when a model is prepared.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch
from torch.fx import Graph, Node
from torchao.quantization.pt2e import quantizer as theirs
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

import torchquilt as tq
from torchquilt.backend import EdgeOrNode, QuantizationAnnotation, is_float_tensor
from torchquilt.errors import AnnotationError

#: Dtypes of torch's older quantized tensors, and the integers that stand for them in a graph.
PLAIN_DTYPES = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}
#: Fields of specs that torchao compares before it lets two edges or nodes of one tensor share.
_COMPARED = ("dtype", "is_dynamic", "quant_min", "quant_max", "qscheme", "ch_axis", "scale", "zero_point")
#: Module of the observers that write operators of torchao, and granularities of theirs that are known here.
_AFFINE = "torchao.quantization.pt2e._affine_quantization"
_GRANULARITIES = {
    "PerTensor": "per_tensor",
    "PerAxis": "per_axis",
    "PerGroup": "per_group",
    "PerToken": "per_token",
}
_MISSING = object()
_FLOAT32_EPS = torch.finfo(torch.float32).eps


def translate_annotations(graph: Graph, quantizer: str) -> dict[EdgeOrNode, Any]:
    """Replace the annotations that a foreign quantizer wrote; those of torchquilt stay as they are.

    Which tensors share parameters is settled by torchao's rules, and written as explicit sharing. An input
    that the node does not have, and the output of a node that returns no float tensor, get no observer in
    torchao either, and are left out.

    Args:
        graph: the graph, annotated.
        quantizer: name of the foreign quantizer.

    Returns:
        Edge or node → the spec that says how it would be observed in torchao; one for each group.

    Raises:
        AnnotationError: a spec has no counterpart here.
    """
    found = {node: node.meta[Q_ANNOTATION_KEY] for node in graph.nodes if Q_ANNOTATION_KEY in node.meta}
    raw = {node: each for node, each in found.items() if not isinstance(each, QuantizationAnnotation)}
    specs: dict[EdgeOrNode, Any] = {}
    observed: dict[EdgeOrNode, Any] = {}
    for members, source in groups_of(raw):
        real = [each for each in members if _has_observer(each)]
        spec = _spec_of_group(source, quantizer)
        specs.update(dict.fromkeys(real, spec))
        if spec is not None and not isinstance(spec, tq.SharedQuantizationSpec):
            specs.update({each: tq.SharedQuantizationSpec(real[0]) for each in real[1:]})
        if real and isinstance(source[1], theirs.QuantizationSpec):
            outputs = (raw[each].output_qspec for each in members if each in raw)
            observed[real[0]] = next(filter(_takes_range_of_output, outputs), source[1])
    for node, each in raw.items():
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
            {
                source: specs.get((source, node))
                for source in each.input_qspec_map or ()
                if source in node.all_input_nodes
            },
            specs.get(node),
            bool(getattr(each, "allow_implicit_sharing", True)),
            quantizer=quantizer,
        )
    return observed


def _has_observer(edge_or_node: EdgeOrNode) -> bool:
    """Whether torchao puts an observer there: an input that the node has, or an output that is a tensor."""
    if isinstance(edge_or_node, tuple):
        return edge_or_node[0] in edge_or_node[1].all_input_nodes
    return is_float_tensor(edge_or_node)


def _spec_of_group(source: tuple[EdgeOrNode, Any], quantizer: str) -> Any:
    """The spec of a group, from the spec of one of its members."""
    member, spec = source
    node = member[1] if isinstance(member, tuple) else member
    try:
        return translated_spec(spec)
    except (_NoCounterpart, tq.SpecError) as error:
        raise AnnotationError(
            f"{quantizer} asks for a spec that torchquilt does not have.",
            node=node,
            quantizer=quantizer,
            expected="integers of up to 32 bits, with the parameters of quantized_decomposed operators",
            got=f"{_in_words(spec)}: {error.args[0]}",
            remedy="configure the quantizer without it, or use torchao's own flow for this model",
        ) from error


def groups_of(raw: dict[Node, Any]) -> Iterator[tuple[list[EdgeOrNode], tuple[EdgeOrNode, Any]]]:
    """The edges and nodes that share parameters by torchao's rules, in graph order; a member and its spec.

    Torchao joins edges and nodes of one tensor whose specs have equal integers, whatever their observers are;
    the first of them says how they are observed. It also follows an edge that the graph does not have, as the
    one to an operator further up. The spec of a group is a shared one only where it shares with a tensor that
    the foreign quantizer has not annotated.

    Args:
        raw: node → the foreign annotation, in graph order.
    """
    specs: dict[EdgeOrNode, Any] = {}
    for node, each in raw.items():
        specs.update({(source, node): spec for source, spec in (each.input_qspec_map or {}).items()})
        specs[node] = each.output_qspec
    specs = {member: spec for member, spec in specs.items() if spec is not None}
    groups = {member: [member] for member in specs}

    def join(first: EdgeOrNode, second: EdgeOrNode) -> None:
        if groups[first] is not groups[second]:
            groups[first].extend(groups[second])
            groups.update(dict.fromkeys(groups[second], groups[first]))

    for member, target in _links(specs, raw):
        join(target, member)
    order = {member: number for number, member in enumerate(specs)}
    for group in {id(group): group for group in groups.values()}.values():
        members = sorted(group, key=order.__getitem__)
        plain = [member for member in members if not isinstance(specs[member], theirs.SharedQuantizationSpec)]
        source = (plain or members)[0]
        yield members, (source, specs[source])


def _links(specs: dict[EdgeOrNode, Any], raw: dict[Node, Any]) -> Iterator[tuple[EdgeOrNode, EdgeOrNode]]:
    """Pairs of edges and nodes that have one observer in torchao."""

    def integers(member: EdgeOrNode) -> Any:
        spec, seen = specs[member], {member}
        while isinstance(spec, theirs.SharedQuantizationSpec) and spec.edge_or_node in specs.keys() - seen:
            seen.add(spec.edge_or_node)
            spec = specs[spec.edge_or_node]
        return tuple(getattr(spec, name, _MISSING) for name in _COMPARED)

    by_tensor: dict[tuple[Node, Any], EdgeOrNode] = {}
    for member, spec in specs.items():
        if isinstance(spec, theirs.SharedQuantizationSpec) and spec.edge_or_node in specs:
            yield member, spec.edge_or_node
        is_joined = not isinstance(member, tuple) or getattr(raw[member[1]], "allow_implicit_sharing", True)
        tensor = member[0] if isinstance(member, tuple) else member
        if is_joined:
            yield member, by_tensor.setdefault((tensor, integers(member)), member)
        if _takes_range_of_output(spec):
            for source in raw[tensor].input_qspec_map:
                if isinstance(specs.get((source, tensor)), theirs.QuantizationSpec):
                    yield (source, tensor), tensor


def _takes_range_of_output(spec: Any) -> bool:
    """Whether the observer of an output overwrites the ranges of the inputs: Qualcomm's for concat."""
    constructor = getattr(spec, "observer_or_fake_quant_ctr", None)
    return constructor is not None and Observing.of(constructor).name == "ConcatObserver"


def translated_spec(spec: Any) -> Any:
    """The spec that says the same integers; None where nothing is quantized.

    Raises:
        SpecError, Exception: there is none; says which field is in the way.
    """
    if spec is None:
        return None
    if isinstance(spec, theirs.SharedQuantizationSpec):
        return tq.SharedQuantizationSpec(spec.edge_or_node)
    if isinstance(spec, theirs.DerivedQuantizationSpec):
        return tq.DerivedQuantizationSpec(
            tuple(spec.derived_from),
            Derivation(spec.derive_qparams_fn),
            *_integers(spec.dtype, spec.quant_min, spec.quant_max),
            **_layout(spec.qscheme, spec.ch_axis),
        )
    if isinstance(spec, theirs.FixedQParamsQuantizationSpec):
        return _fixed(spec, spec.scale, spec.zero_point)
    if not isinstance(spec, theirs.QuantizationSpec):
        raise _NoCounterpart(f"{type(spec).__qualname__} is no spec of torchao")
    return None if spec.dtype in (torch.float32, torch.float64) else _observed(spec)


def _fixed(spec: Any, scale: float, zero_point: int) -> tq.FixedQParamsQuantizationSpec:
    dtype, low, high = _integers(spec.dtype, spec.quant_min, spec.quant_max)
    return tq.FixedQParamsQuantizationSpec(dtype, float(scale), int(zero_point), low, high)


def _observed(spec: Any) -> Any:
    """The spec of a tensor whose range is observed."""
    facts = Observing.of(spec.observer_or_fake_quant_ctr)
    if facts.has_own_conversion:
        return _affine(spec, facts)
    if {"scale", "zero_point"} <= facts.arguments.keys():
        return _fixed(spec, facts.arguments["scale"], facts.arguments["zero_point"])
    dtype, low, high = _integers(spec.dtype, spec.quant_min, spec.quant_max)
    is_given = None not in (spec.quant_min, spec.quant_max)
    if facts.arguments.get("reduce_range"):
        low, high = (low // 2, high // 2) if is_given else _reduced(dtype)
    scheme = spec.qscheme
    is_symmetric = scheme in (torch.per_tensor_symmetric, torch.per_channel_symmetric)
    # Of the two integers in the middle of a given range of bytes, torchao takes the lower one.
    is_lower = is_symmetric and dtype is torch.uint8 and is_given
    return tq.QuantizationSpec(
        dtype,
        low,
        high,
        **_layout(scheme, spec.ch_axis),
        symmetric=is_symmetric,
        is_dynamic=bool(spec.is_dynamic),
        zero_point=(low + high) // 2 if is_lower else None,
        eps=facts.eps,
        zero_point_domain="float" if scheme == torch.per_channel_affine_float_qparams else "int",
    )


def _affine(spec: Any, facts: Observing) -> tq.QuantizationSpec:
    """The spec of one of torchao's affine observers, where operators of quantized_decomposed say the same."""
    given = facts.arguments
    granularity = given.get("granularity")
    kind = _GRANULARITIES.get(type(granularity).__name__)
    group_size = getattr(granularity, "group_size", None)
    # Blocks of one row are groups.
    block: tuple[int, ...] = getattr(granularity, "block_size", ())
    if len(block) == 2 and block[0] == 1:
        kind, group_size = "per_group", block[1]
    mapping = getattr(given.get("mapping_type"), "name", None)
    is_plain = given.get("preserve_zero", True) and "zero_point_domain" not in given
    if (
        facts.subject.__module__ != _AFFINE
        or None in (kind, mapping)
        or "CLIPPING" in str(mapping)
        or not is_plain
    ):
        raise _NoCounterpart(f"{facts.name} writes operators of its own when it is converted")
    return tq.QuantizationSpec(
        *_integers(given["target_dtype"], spec.quant_min, spec.quant_max),
        granularity=str(kind),
        ch_axis=getattr(granularity, "axis", None),
        group_size=group_size,
        symmetric=mapping == "SYMMETRIC",
        is_dynamic=bool(spec.is_dynamic) and "MinMax" not in facts.name,
        eps=facts.eps,
    )


def _integers(dtype: torch.dtype, low: int | None, high: int | None) -> tuple[torch.dtype, int, int]:
    """The dtype and its range; the whole of it where none is given."""
    dtype = PLAIN_DTYPES.get(dtype, dtype)
    if dtype.is_floating_point:
        raise _NoCounterpart(f"{dtype} is no integer type")
    whole = torch.iinfo(dtype)
    return dtype, whole.min if low is None else low, whole.max if high is None else high


def _reduced(dtype: torch.dtype) -> tuple[int, int]:
    """The range of 7 bits that torchao's observers take for 8."""
    if dtype not in (torch.int8, torch.uint8):
        raise _NoCounterpart(f"reduce_range with {dtype}")
    return (-64, 63) if dtype is torch.int8 else (0, 127)


def _layout(scheme: Any, axis: int | None) -> dict[str, Any]:
    """Granularity and axis of a qscheme; None is per tensor, as with torchao's observers."""
    if scheme in (None, torch.per_tensor_affine, torch.per_tensor_symmetric):
        return {}
    return {"granularity": "per_axis", "ch_axis": 0 if axis is None else axis}


def _in_words(spec: Any) -> str:
    kind = type(spec).__qualname__
    fields = {name: getattr(spec, name, None) for name in ("dtype", "quant_min", "quant_max", "qscheme")}
    return f"{kind}({', '.join(f'{name}={value}' for name, value in fields.items() if value is not None)})"


class _NoCounterpart(Exception):
    """Something of torchao that torchquilt has no words for."""


@attrs.frozen
class Observing:
    """Facts about an observer or fake quantize constructor: its class, and the arguments it is given."""

    subject: Any
    arguments: dict[str, Any]

    @classmethod
    def of(cls, constructor: Any) -> Observing:
        """Read a class, or what its ``with_args`` returned, with the arguments of the observer inside."""
        subject = constructor
        arguments: dict[str, Any] = {}
        while True:
            inner = getattr(subject, "p", subject)
            if not isinstance(inner, functools.partial):
                break
            subject, arguments = inner.func, {**inner.keywords, **arguments}
        if "observer" in arguments:
            observer = cls.of(arguments["observer"])
            arguments = {**observer.arguments, **arguments, "observer": observer.subject}
        return cls(subject, arguments)

    @property
    def name(self) -> str:
        """The name of the class."""
        return str(getattr(self.subject, "__qualname__", self.subject))

    @property
    def has_own_conversion(self) -> bool:
        """Whether torchao lets the class, or the observer inside, write what replaces it in the graph."""
        return any(hasattr(each, "convert") for each in (self.subject, self.arguments.get("observer")))

    @property
    def eps(self) -> float:
        """The smallest scale, as given, or as the class has it by default."""
        given = self.arguments.get("eps")
        if given is None:
            given = next(self._defaults("eps"), None)
        return _FLOAT32_EPS if given is None else float(given)

    def _defaults(self, name: str) -> Iterator[Any]:
        for subject in (self.arguments.get("observer"), self.subject):
            for base in getattr(subject, "__mro__", ()):
                found = inspect.signature(base).parameters.get(name) if "__init__" in vars(base) else None
                if found is not None and found.default is not inspect.Parameter.empty:
                    yield found.default


@attrs.frozen
class Derivation:
    """A foreign ``derive_qparams_fn``, called as torchao calls it: with objects that have the parameters.

    Two of one function are equal, so that tensors with equal derived specs can share.
    """

    function: Callable[[list[Any]], tuple[torch.Tensor, torch.Tensor]]

    def __call__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The derived scale and zero point."""
        return self.function([_Found(scale.reshape(-1), zero.reshape(-1)) for scale, zero in pairs])


@attrs.frozen
class _Found:
    """Parameters in the form in which an observer of torchao tells them, of at least one dimension."""

    scale: torch.Tensor
    zero_point: torch.Tensor

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point."""
        return self.scale, self.zero_point
