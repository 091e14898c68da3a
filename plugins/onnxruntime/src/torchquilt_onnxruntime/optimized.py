"""The model that ONNX Runtime makes of a file: which kernel computes which operator of the exported program.

The runtime writes its optimized model. A kernel there is joined with the nodes of the file in two ways:

- by its name: the fusions keep that of the product or convolution in them, as it is or as a beginning;
- by values: a kernel computes what lies between the values that it reads and those that it returns, as far as
  no other kernel has the name of it. Fusions keep the names of values around them.

A kernel that the runtime put in by itself, to change a layout, is no operator of the program. What lies
behind it was computed by the kernel that it reads.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from torchquilt.backend import Arithmetic, Conversion, Operation
from torchquilt_onnxruntime.exporting import ALSO, KIND, OVERLOAD, SOURCE
from torchquilt_onnxruntime.packages import required
from torchquilt_onnxruntime.runner import options, session
from torchquilt_onnxruntime.stored import nodes_of, operator_name
from torchquilt_onnxruntime.weights_file import SMALLEST

#: Operators that convert between floats and integers and compute nothing.
_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
#: Kernels that multiply or add integers.
_INTEGER_KERNELS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "NhwcMaxPool",
        "QAttention",
        "QGemm",
    }
)
#: Kernels that read integers of a weight as they are stored.
_READS_WEIGHTS = frozenset({"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"})
#: Kernels whose sums are floats. A bias is added to them in any kernel that is there for something else.
_RETURNS_SUMS = frozenset(
    {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", *_READS_WEIGHTS}
)
#: Kernels that lay out data; beside another kernel of the same operator they are no operators of their own.
_LAYING_OUT = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "ReorderInput",
        "ReorderOutput",
        "Reshape",
        "Shape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
#: Kind of a node (:data:`KIND`) that changes a layout, in a file that the runtime optimized before.
PUT_IN = "put in"
#: Key of a node's metadata, in such a file: the operator whose value it returns, ``node overload``, or empty.
VALUE = "torchquilt.value"
#: What fusions add to the name of a node.
_ADDED = re.compile(r"(/[^/]*/?|_token_\d+|_nchwc|_quant)$")
#: Name of the file in which the runtime puts the weights of the model that it optimized.
_WEIGHTS = "optimized.bin"
_NARROW = frozenset({"INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"})
_FLOATS = frozenset({"", "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE"})


@attrs.frozen
class Part:
    """An operator of the exported program: its node and its overload."""

    source: str
    overload: str

    def __str__(self) -> str:
        return f"{self.source} {self.overload}"

    @classmethod
    def of(cls, text: str) -> Part | None:
        """Read one of metadata; None of an empty text."""
        source, _, overload = text.partition(" ")
        return cls(source, overload) if text else None


@attrs.frozen(eq=False)
class _Node:
    """A node of the file.

    Args:
        name: in the file.
        part: the operator that it was written for.
        also: operators whose effect it has, too.
        is_conversion: whether it was written for what quantizes or dequantizes.
        reads: the names of the values that it reads.
    """

    name: str
    part: Part
    also: tuple[Part, ...]
    is_conversion: bool
    reads: tuple[str, ...]

    @classmethod
    def of(cls, node: Any) -> _Node:
        """Read a node."""
        told = {one.key: one.value for one in node.metadata_props}
        also = map(Part.of, told.get(ALSO, "").split("\n"))
        return cls(
            node.name,
            Part(told.get(SOURCE, ""), told.get(OVERLOAD, "")),
            tuple(part for part in also if part is not None),
            told.get(KIND) == "conversion",
            tuple(filter(None, node.input)),
        )


@attrs.frozen(eq=False)
class _File:
    """The nodes of a file, by their names and by the values that they return.

    Args:
        producers: by the values.
        names: by their names.
        dtypes: of the values, in ONNX's words.
        told: for values of a file that the runtime optimized before: the operator that returns it, or None.
    """

    producers: Mapping[str, _Node]
    names: Mapping[str, _Node]
    dtypes: dict[str, str]
    told: Mapping[str, Part | None]

    @classmethod
    def of(cls, model: Any) -> _File:
        """Read a file."""
        onnx = required("onnx")
        producers, names = {}, {}
        values: dict[str, Part | None] = {}
        for node in nodes_of(model.graph):
            told = {one.key: one.value for one in node.metadata_props}
            if VALUE in told:
                values.update(dict.fromkeys(node.output, Part.of(told[VALUE])))
            if told.get(KIND) == PUT_IN:
                continue
            made = names[node.name] = _Node.of(node)
            producers.update(dict.fromkeys(node.output, made))
        dtypes = {one.name: onnx.TensorProto.DataType.Name(one.data_type) for one in model.graph.initializer}
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
            kind = value.type.tensor_type.elem_type
            dtypes[value.name] = onnx.TensorProto.DataType.Name(kind) if kind else ""
        return cls(producers, names, dtypes, values)

    def named_like(self, name: str) -> _Node | None:
        """The node that a kernel was made of, by its name: that, or one to which a fusion has added."""
        while name:
            if name in self.names:
                return self.names[name]
            shorter = _ADDED.sub("", name)
            name = shorter if shorter != name else ""
        return None

    def between(self, outputs: Iterable[str], known: frozenset[str], claimed: set[str]) -> Iterator[_Node]:
        """The nodes that compute some values of others that are known, up to those that are claimed."""
        seen: set[str] = set()
        waiting = [value for value in outputs if value in self.producers]
        while waiting:
            node = self.producers[waiting.pop()]
            if node.name in seen or node.name in claimed:
                continue
            seen.add(node.name)
            yield node
            waiting += [one for one in node.reads if one not in known and one in self.producers]


@attrs.define(eq=False)
class FusedKernel:
    """A node of the optimized model.

    Args:
        op: its operator, with the domain.
        name: its name in the optimized model.
        reads, returns: the names of values.
        own: the node of the file that has its name.
        nodes: the nodes of the file that it computes.
    """

    op: str
    name: str
    reads: tuple[str, ...]
    returns: tuple[str, ...]
    own: _Node | None
    nodes: tuple[_Node, ...] = ()

    @property
    def type(self) -> str:
        """Its operator without the domain."""
        return self.op.rpartition("::")[2]

    @property
    def is_put_in(self) -> bool:
        """Whether the runtime put it in to change a layout or a dtype."""
        return self.own is None and self.type in _LAYING_OUT

    @property
    def converts(self) -> bool:
        """Whether it is a quantize or dequantize that no kernel took, or a part of one."""
        if self.nodes:
            return all(node.is_conversion and not node.also for node in self.nodes)
        return self.type in _CONVERSIONS

    @property
    def parts(self) -> tuple[Part, ...]:
        """The operators that it computes."""
        own = (node.part for node in self.nodes if not node.is_conversion)
        also = (part for node in self.nodes for part in node.also)
        return tuple(dict.fromkeys((*own, *also)))


@attrs.frozen(eq=False)
class Optimized:
    """A model as the runtime optimized it.

    Args:
        kernels: the nodes of it, in order.
        file: the nodes of the file.
        model: as a message of ONNX.
        files: those beside it that it needs to run, name → content.
    """

    kernels: Sequence[FusedKernel]
    file: _File
    model: Any
    files: Mapping[str, bytes]

    @classmethod
    def of(
        cls, buffer: bytes, model: Any, files: Mapping[str, bytes], *, keeps_layouts: bool = False
    ) -> Optimized:
        """Have the runtime optimize a file.

        Args:
            buffer: the file.
            model: the same, as a message of ONNX.
            files: those beside it, name → content.
            keeps_layouts: leave out what only changes how values lie in memory.

        Raises:
            ProgramError: the runtime cannot load it.
        """
        file = _File.of(model)
        optimized, beside = _optimized_by_runtime(buffer, files, keeps_layouts=keeps_layouts)
        kernels = [
            FusedKernel(
                operator_name(node),
                node.name or next(iter(node.output), ""),
                tuple(filter(None, node.input)),
                tuple(filter(None, node.output)),
                file.named_like(node.name),
            )
            for node in nodes_of(optimized.graph)
        ]
        _join(kernels, file)
        _tell_dtypes(kernels, file.dtypes)
        return cls(kernels, file, optimized, beside)

    @property
    def operators(self) -> tuple[str, ...]:
        """The kernels of the runtime that it calls."""
        return tuple(dict.fromkeys(one.op for one in self.kernels))

    @cached_property
    def _computing(self) -> Mapping[Part, list[FusedKernel]]:
        """Operator → the kernels that compute it.

        Those that scale the sums of a product and add its bias do not, and those that lay out data where
        there are others do not either.
        """
        found: dict[Part, list[FusedKernel]] = defaultdict(list)
        for kernel in self.kernels:
            for part in kernel.parts:
                found[part].append(kernel)
        return {part: _computing(kernels) for part, kernels in found.items()}

    def steps(self) -> Mapping[str, str]:
        """Name of a kernel → the step that it belongs to, which is the name of a kernel that computes.

        Kernels that lay out data for an operator belong to it. What converts, and what the runtime put in,
        belongs to what reads it, or else to what it reads.
        """
        computing = {kernel.name for kernels in self._computing.values() for kernel in kernels}
        found: dict[str, str] = {}
        for kernel in self.kernels:
            own = next((self._computing[part][0].name for part in kernel.parts), "")
            found[kernel.name] = kernel.name if kernel.name in computing else own
        readers = {value: kernel.name for kernel in self.kernels for value in kernel.reads}
        makers = {value: kernel.name for kernel in self.kernels for value in kernel.returns}
        for kernel in reversed(self.kernels):
            behind = (found[readers[value]] for value in kernel.returns if value in readers)
            found[kernel.name] = found[kernel.name] or next(filter(None, behind), "")
        for kernel in self.kernels:
            before = (found[makers[value]] for value in kernel.reads if value in makers)
            found[kernel.name] = found[kernel.name] or next(filter(None, before), kernel.name)
        return found

    def operations(self, withheld: Mapping[str, str]) -> tuple[Operation, ...]:
        """The operators of the exported program, each with the kernels that compute it.

        Args:
            withheld: nodes that are left in float → the runtime's words, why.
        """
        makers: dict[str, str] = {}
        found = []
        for kernel in self.kernels:
            if kernel.converts or kernel.is_put_in:
                source = next((makers[one] for one in kernel.reads if one in makers), None)
                if kernel.is_put_in and source is not None:
                    makers.update(dict.fromkeys(kernel.returns, source))
                continue
            arithmetic, why = self._arithmetic(kernel)
            reads = tuple(dict.fromkeys(makers[one] for one in kernel.reads if one in makers))
            parts = [part for part in kernel.parts if kernel in self._computing[part]]
            for part in parts or ([] if kernel.parts else [Part("", kernel.op)]):
                name = kernel.name if part is (parts or [part])[0] else f"{kernel.name} for {part.source}"
                told = (arithmetic, why, reads, self._is_float(kernel.returns))
                refused = withheld.get(part.source, "")
                number = kernel.parts.index(part) if part in kernel.parts else None
                found.append(
                    Operation(name, part.overload, part.source, "", *told, refused, kernel.name, number)
                )
            makers.update(dict.fromkeys(kernel.returns, kernel.name))
        return tuple(found)

    def positions(self) -> dict[str, tuple[str, int]]:
        """Node of the exported program → its step, and its number among those that the step computes."""
        return {
            part.source: (kernel.name, kernel.parts.index(part))
            for part, (kernel, *_) in self._computing.items()
        }

    def values(self) -> dict[str, str]:
        """Values that are those of the file: name → the node of the exported program that returns it."""
        found = {}
        for kernel in self.kernels:
            part = None if kernel.converts else self.returned_by(kernel)
            if part is not None:
                found[kernel.returns[0]] = part.source
        return found

    def returned_by(self, kernel: FusedKernel) -> Part | None:
        """The operator whose value a kernel returns; None where the file has no such value."""
        value = kernel.returns[0] if kernel.returns else ""
        if value in self.file.told:
            return self.file.told[value]
        node = self.file.producers.get(value)
        while node is not None and node.is_conversion and not node.also:
            node = self.file.producers.get(node.reads[0])
        return None if node is None else (*node.also, node.part)[0 if node.is_conversion else -1]

    def conversions(self) -> tuple[Conversion, ...]:
        """The quantize and dequantize operators that no kernel took."""
        found: dict[str, Conversion] = {}
        for kernel in self.kernels:
            if kernel.converts:
                node = kernel.own or next(iter(kernel.nodes), None)
                part = node.part if node is not None else Part("", kernel.op)
                found.setdefault(
                    part.source or kernel.name, Conversion(kernel.name, part.overload, part.source)
                )
        return tuple(found.values())

    def _arithmetic(self, kernel: FusedKernel) -> tuple[Arithmetic, str]:
        told = f"ONNX Runtime runs {kernel.op}"
        if kernel.type.startswith("QLinear") or kernel.type in _INTEGER_KERNELS:
            return "integer", f"{told}, which computes with integers"
        if kernel.type in _READS_WEIGHTS:
            return "integer", f"{told}, which reads the integers of the weight"
        if any(self.file.dtypes.get(one) in _NARROW for one in kernel.reads):
            return "integer", f"{told} on the integers"
        return ("float" if self._is_float((*kernel.reads, *kernel.returns)) else "integer"), told

    def _is_float(self, values: Iterable[str]) -> bool:
        return any(self.file.dtypes.get(one, "") in _FLOATS for one in values)


def _computing(kernels: list[FusedKernel]) -> list[FusedKernel]:
    products = [one for one in kernels if one.type in _RETURNS_SUMS]
    return products or [one for one in kernels if one.type not in _LAYING_OUT] or kernels


def _tell_dtypes(kernels: Sequence[FusedKernel], dtypes: dict[str, str]) -> None:
    """Add the dtypes of values that the runtime put in: a layout changes none."""
    for kernel in kernels:
        same = kernel.type in _LAYING_OUT - {"Cast", "Shape"} or kernel.type.startswith("Nhwc")
        known = dtypes.get(kernel.reads[0], "") if same and kernel.reads else ""
        if kernel.type.startswith("QLinear"):
            known = "UINT8"
        for value in kernel.returns:
            dtypes.setdefault(value, known)


def _join(kernels: Sequence[FusedKernel], file: _File) -> None:
    """Tell each kernel the nodes of the file that it computes."""
    known = frozenset(value for kernel in kernels for value in kernel.returns)
    claimed = {kernel.own.name for kernel in kernels if kernel.own is not None}
    makers: dict[str, FusedKernel] = {}
    for kernel in kernels:
        boundary = (known | frozenset(kernel.reads)) - frozenset(kernel.returns)
        own = () if kernel.own is None else (kernel.own,)
        others = claimed - {node.name for node in own}
        nodes = (*own, *file.between(kernel.returns, boundary, others))
        source = next((makers[value] for value in kernel.reads if value in makers), None)
        if kernel.is_put_in and source is not None:
            source.nodes = tuple(dict.fromkeys((*source.nodes, *nodes)))
            makers.update(dict.fromkeys(kernel.returns, source))
        else:
            kernel.nodes = tuple(dict.fromkeys(nodes))
            makers.update(dict.fromkeys(kernel.returns, kernel))
    _join_the_rest(kernels, file)


def _join_the_rest(kernels: Sequence[FusedKernel], file: _File) -> None:
    """Tell kernels the nodes whose values the runtime laid out otherwise: they follow what they read."""
    computed = {node.name: kernel for kernel in kernels for node in kernel.nodes}
    for node in file.names.values():
        if node.name in computed:
            continue
        sources = (file.producers[value].name for value in node.reads if value in file.producers)
        kernel = next((computed[name] for name in sources if name in computed), None)
        if kernel is not None:
            kernel.nodes = (*kernel.nodes, node)
            computed[node.name] = kernel


def _optimized_by_runtime(
    buffer: bytes, files: Mapping[str, bytes], *, keeps_layouts: bool
) -> tuple[Any, Mapping[str, bytes]]:
    """The optimized model, as the runtime writes it, and the file of its weights where there is one."""
    onnx, runtime = required("onnx"), required("onnxruntime")
    with tempfile.TemporaryDirectory(prefix="torchquilt-") as folder:
        path = Path(folder) / "optimized.onnx"
        chosen = options()
        chosen.optimized_model_filepath = str(path)
        if keeps_layouts:
            chosen.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        if files:
            chosen.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", _WEIGHTS
            )
            chosen.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", str(SMALLEST)
            )
        session(buffer, chosen, files)
        weights = path.with_name(_WEIGHTS)
        beside = {_WEIGHTS: weights.read_bytes()} if weights.exists() else {}
        return onnx.ModelProto.FromString(path.read_bytes()), beside
