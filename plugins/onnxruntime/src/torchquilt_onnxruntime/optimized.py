"""The model that ONNX Runtime makes of a file: which kernel computes which operator of the exported program.

The runtime writes its optimized model. A kernel there is joined with the nodes of the file by values: it
computes what lies between the values that it reads and those that it returns, since fusions keep the names of
these. Where a kernel returns a value that the file does not have (the runtime chose another layout), its name
tells, which begins with that of the node that it was made of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from torchquilt.backend import Arithmetic, Conversion, Operation
from torchquilt_onnxruntime.exporting import KIND, OVERLOAD, SOURCE
from torchquilt_onnxruntime.graphs import graphs_of
from torchquilt_onnxruntime.packages import required
from torchquilt_onnxruntime.runner import options, session

if TYPE_CHECKING:
    from onnxscript import ir

#: Operators that convert between floats and integers and compute nothing.
CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
#: Kernels that multiply or add integers.
_INTEGER_KERNELS = frozenset(
    {"ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention", "QGemm"}
)
#: Kernels that read integers of a weight as they are stored.
_READS_WEIGHTS = frozenset({"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"})
_NARROW = frozenset({"INT4", "UINT4", "INT8", "UINT8", "INT16", "UINT16"})


@attrs.frozen(eq=False)
class _Node:
    """A node of the file.

    Args:
        name: in the file.
        source: the node of the exported program that it comes from, empty where that is not known.
        is_conversion: whether it was written for what quantizes or dequantizes.
        overload: the operator that it was written for.
        reads: the names of the values that it reads.
    """

    name: str
    source: str
    is_conversion: bool
    overload: str
    reads: tuple[str, ...]


@attrs.frozen(eq=False)
class _File:
    """The nodes of a file, to be found by the values that they return."""

    producers: Mapping[str, _Node]
    names: Mapping[str, _Node]
    dtypes: Mapping[str, str]

    @classmethod
    def of(cls, model: ir.Model) -> _File:
        """Read a model that was written."""
        producers, names, dtypes = {}, {}, {}
        for graph in graphs_of(model):
            for value in (*graph.inputs, *graph.initializers.values()):
                dtypes[str(value.name)] = value.dtype.name if value.dtype is not None else ""
            for node in graph:
                told = node.metadata_props
                made = _Node(
                    str(node.name),
                    told.get(SOURCE, ""),
                    told.get(KIND) == "conversion",
                    told.get(OVERLOAD, ""),
                    tuple(str(value.name) for value in node.inputs if value is not None),
                )
                names[made.name] = made
                for value in node.outputs:
                    producers[str(value.name)] = made
                    dtypes[str(value.name)] = value.dtype.name if value.dtype is not None else ""
        return cls(producers, names, dtypes)

    def between(self, outputs: Iterable[str], known: frozenset[str]) -> Iterator[_Node]:
        """The nodes that compute some values of others that are known."""
        seen: set[str] = set()
        waiting = [value for value in outputs if value in self.producers]
        while waiting:
            node = self.producers[waiting.pop()]
            if node.name in seen:
                continue
            seen.add(node.name)
            yield node
            waiting += [one for one in node.reads if one not in known and one in self.producers]

    def named_like(self, name: str) -> _Node | None:
        """The node that a kernel was made of, by its name: that, or one that it begins with."""
        while name:
            if name in self.names:
                return self.names[name]
            name = name.rpartition("_")[0]
        return None


@attrs.frozen(eq=False)
class _Kernel:
    """A node of the optimized model, with the nodes of the file that it computes."""

    op: str
    name: str
    reads: tuple[str, ...]
    returns: tuple[str, ...]
    nodes: tuple[_Node, ...]

    @property
    def type(self) -> str:
        """Its type without the domain."""
        return self.op.rpartition("::")[2]


@attrs.frozen(eq=False)
class Optimized:
    """A model as the runtime optimized it.

    Args:
        kernels: what it runs, in order.
        file: the nodes of the file.
    """

    kernels: Sequence[_Kernel]
    file: _File

    @classmethod
    def of(cls, buffer: bytes, model: ir.Model) -> Optimized:
        """Have the runtime optimize a file.

        Args:
            buffer: the file.
            model: the same, with the origin of each node.

        Raises:
            ProgramError: the runtime cannot load it.
        """
        nodes = list(_flat(_optimized_by_runtime(buffer).graph))
        file = _File.of(model)
        known = frozenset(output for node in nodes for output in node.output)
        return cls([_joined(node, file, known) for node in nodes], file)

    @property
    def operators(self) -> tuple[str, ...]:
        """The kernels of the runtime that it calls."""
        return tuple(dict.fromkeys(one.op for one in self.kernels))

    def operations(self) -> tuple[Operation, ...]:
        """The operators of the exported program, each with the kernel that computes it."""
        makers: dict[str, str] = {}
        found, done = [], set()
        for kernel in self.kernels:
            if kernel.type in CONVERSIONS:
                continue
            computed = {node.source: node for node in kernel.nodes if not node.is_conversion}
            own = self.file.named_like(kernel.name)
            if own is not None and not own.is_conversion:
                computed.setdefault(own.source, own)
            arithmetic, why = self._arithmetic(kernel)
            reads = tuple(dict.fromkeys(makers[one] for one in kernel.reads if one in makers))
            for value in kernel.returns:
                makers[value] = kernel.name
            for source, node in computed.items() or [("", None)]:
                name = kernel.name if source in ("", kernel.name) else f"{kernel.name} for {source}"
                if source in done and source:
                    continue
                done.add(source)
                overload = node.overload if node is not None else kernel.op
                found.append(
                    Operation(
                        name,
                        overload or kernel.op,
                        source,
                        "",
                        arithmetic,
                        why,
                        reads,
                        self._is_float(kernel),
                    )
                )
        return tuple(found)

    def conversions(self) -> tuple[Conversion, ...]:
        """The quantize and dequantize operators that no kernel took."""
        return tuple(
            Conversion(kernel.name, kernel.op, next((node.source for node in kernel.nodes), ""))
            for kernel in self.kernels
            if kernel.type in CONVERSIONS
        )

    def _arithmetic(self, kernel: _Kernel) -> tuple[Arithmetic, str]:
        told = f"ONNX Runtime runs {kernel.op}"
        if kernel.type.startswith("QLinear") or kernel.type in _INTEGER_KERNELS:
            return "integer", f"{told}, which computes with integers"
        if kernel.type in _READS_WEIGHTS:
            return "integer", f"{told}, which reads the integers of the weight"
        if any(self.file.dtypes.get(one) in _NARROW for one in kernel.reads):
            return "integer", f"{told} on the integers"
        return ("float" if self._touches_float(kernel) else "integer"), told

    def _touches_float(self, kernel: _Kernel) -> bool:
        dtypes = [self.file.dtypes.get(one, "FLOAT") for one in (*kernel.reads, *kernel.returns)]
        return any(dtype in ("", "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE") for dtype in dtypes)

    def _is_float(self, kernel: _Kernel) -> bool:
        dtypes = [self.file.dtypes.get(one, "FLOAT") for one in kernel.returns]
        return any(dtype in ("", "FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE") for dtype in dtypes)


def _joined(node: Any, file: _File, known: frozenset[str]) -> _Kernel:
    """A node of the optimized model with what it computes."""
    inputs = frozenset(node.input)
    nodes = tuple(file.between(node.output, (known | inputs) - frozenset(node.output)))
    return _Kernel(
        f"{node.domain or 'ai.onnx'}::{node.op_type}",
        node.name or (node.output[0] if node.output else ""),
        tuple(filter(None, node.input)),
        tuple(filter(None, node.output)),
        nodes,
    )


def _flat(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _flat(attribute.g)


def _optimized_by_runtime(buffer: bytes) -> Any:
    """The optimized model, as the runtime writes it."""
    onnx = required("onnx")
    with tempfile.TemporaryDirectory(prefix="torchquilt-") as folder:
        path = Path(folder) / "optimized.onnx"
        chosen = options()
        chosen.optimized_model_filepath = str(path)
        session(buffer, chosen)
        return onnx.ModelProto.FromString(path.read_bytes())
