"""Join of a program with the kernels that Inductor generated: where each operator runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.fx import Node

from torchquilt.backend import (
    Conversion,
    Operation,
    chooses_qparams,
    dequantize_of,
    is_conversion,
    is_quantize,
    overload_name,
)
from torchquilt_inductor_x86.generated import WEIGHT_ONLY, Generated

#: Operators of which a kernel of integers does the work.
PRODUCTS = (
    "aten.linear.default",
    "aten.conv1d",
    "aten.conv2d",
    "aten.convolution",
    "aten._weight_int8pack_mm",
)


class Joined:
    """The operators of a program, each with its kernel.

    Args:
        nodes: the calls of the program that was compiled, by the names of those that were given.
        kernels: what was generated.
        refused: name of an operator → why it was left to float.
    """

    def __init__(
        self, nodes: Mapping[str, Node], kernels: Sequence[Generated], refused: Mapping[str, str]
    ) -> None:
        self._nodes = nodes
        self._names = {node: name for name, node in nodes.items()}
        self._refused = refused
        self._sinks = {one.sink: one for one in kernels if one.is_called and one.sink in nodes}
        self._loops: dict[str, Generated] = {}
        for one in kernels:
            if not one.is_called:
                self._loops.update(dict.fromkeys(one.sources, one))
        #: Name of an operator → the kernel of integers that computes it.
        self._taken: dict[str, Generated] = {}
        #: Quantize and dequantize operators that such a kernel took with it.
        self._absorbed: set[str] = set()
        for sink, kernel in self._sinks.items():
            self._take(sink, kernel)

    def operations(self) -> tuple[Operation, ...]:
        """All operators, in order."""
        return tuple(self._operation(name, node) for name, node in self._nodes.items() if _is_operator(node))

    def conversions(self) -> tuple[Conversion, ...]:
        """The quantize and dequantize operators that are part of loops in float."""
        return tuple(
            Conversion(name, overload_name(node), name)
            for name, node in self._nodes.items()
            if is_conversion(node)
            and not chooses_qparams(node)
            and name not in self._absorbed
            and name in self._loops
        )

    def served(self) -> dict[str, str]:
        """The steps that do nothing but quantize and dequantize → the step that reads what they return."""
        done = {self._operation(name, node).step for name, node in self._nodes.items() if _is_operator(node)}
        found: dict[str, str] = {}
        for name, node in self._nodes.items():
            kernel = self._loops.get(name) or self._sinks.get(name)
            if kernel is not None and is_conversion(node) and kernel.step not in done:
                step = self._step_that_reads(node)
                found.update({kernel.step: step} if step else {})
        return found

    def _step_that_reads(self, conversion: Node) -> str:
        waiting = [conversion]
        for node in waiting:  # grows while it is walked
            for reader in node.users:
                step = self._operation(self._names[reader], reader).step if reader in self._names else ""
                if step and _is_operator(reader):
                    return step
                waiting.append(reader)
        return ""

    def _take(self, sink: str, kernel: Generated) -> None:
        """Note the operators that a kernel of integers computes: its product, and what is fused behind it."""
        if not kernel.is_integer:
            return
        region = self._region(self._nodes[sink])
        for node in region:
            name = self._names.get(node, "")
            if is_conversion(node):
                self._absorbed.add(name)
            else:
                self._taken[name] = kernel
                self._absorbed.update(
                    self._names.get(source, "") for source in node.all_input_nodes if dequantize_of(source)
                )

    def _region(self, sink: Node) -> list[Node]:
        """The nodes from the product of a kernel to the one whose value it returns."""
        paths = [[sink]]
        while paths:
            path = paths.pop()
            last = path[-1]
            if is_product(last) or (last is not sink and self._is_end(last)):
                if is_product(last):
                    return path
                continue
            if last is sink and not is_quantize(last) and not _feeds_on_floats(last):
                return path  # a data-movement operator on integers
            paths += [[*path, source] for source in last.all_input_nodes if source in self._names]
        return [sink]

    def _is_end(self, node: Node) -> bool:
        return is_conversion(node) or self._names.get(node, "") in self._sinks

    def _operation(self, name: str, node: Node) -> Operation:
        kernel = self._taken.get(name) or self._sinks.get(name) or self._loops.get(name)
        is_integer = name in self._taken or _moves_integers(node)
        if kernel is not None and WEIGHT_ONLY in kernel.kernel:
            is_integer = True
        return Operation(
            name=name,
            op=overload_name(node),
            source=name,
            delegate="",
            arithmetic="integer" if is_integer else "float",
            why=_why(name, node, kernel, is_integer),
            reads=tuple(
                self._names[source]
                for source in node.all_input_nodes
                if source in self._names and _is_operator(source)
            ),
            returns_float=_is_float(node),
            refused=self._refused.get(name, ""),
            step="" if kernel is None else kernel.step,
        )


def _why(name: str, node: Node, kernel: Generated | None, is_integer: bool) -> str:
    if kernel is None:
        return "it is no kernel of its own: a view, or a constant"
    if kernel.multiplies_integers:
        what = "computes it" if is_product(node) else "computes it behind the product of integers"
        return f"the kernel {kernel} {what}"
    if WEIGHT_ONLY in kernel.kernel:
        return f"the kernel {kernel} reads weights of integers, and multiplies in float"
    if kernel.is_called:
        return f"the kernel {kernel} computes it"
    kind = "moves integers in" if is_integer else "computes it in float in"
    return f"Inductor {kind} the generated loop {kernel.step}"


def _is_operator(node: Node) -> bool:
    return bool(overload_name(node)) and not is_conversion(node)


def is_product(node: Node) -> bool:
    """Whether an operator is one that kernels of integers compute: a convolution or a linear layer."""
    return overload_name(node).startswith(PRODUCTS)


def _dtypes(nodes: Sequence[Node]) -> Iterator[torch.dtype]:
    values = (node.meta.get("val") for node in nodes)
    return (value.dtype for value in values if isinstance(value, torch.Tensor))


def _is_float(node: Node) -> bool:
    return any(dtype.is_floating_point for dtype in _dtypes([node]))


def _feeds_on_floats(node: Node) -> bool:
    return any(dtype.is_floating_point for dtype in _dtypes(node.all_input_nodes))


def _moves_integers(node: Node) -> bool:
    dtypes = [*_dtypes([node, *node.all_input_nodes[:1]])]
    return bool(dtypes) and all(dtype in (torch.uint8, torch.int8) for dtype in dtypes)
