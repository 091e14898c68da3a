"""Running a stored program in this process."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torchquilt import ProgramError
from torchquilt.backend import KernelTime, RunTimes, Slot, StoredFacts, StoredRunner
from torchquilt_openvino.compiling import compiled
from torchquilt_openvino.executed import Executed, executed_by
from torchquilt_openvino.loading import openvino
from torchquilt_openvino.stored import FACTS, Facts, StoredProgram, Tensor

#: Tensors that numpy has no type for are handed over as integers of their size.
_AS_INTEGERS = {torch.bfloat16: torch.int16}
_LAYER = re.compile(rb'<layer id="\d+" name="[^"]*" type="(\w+)" version="(\w+)"')
_NO_KERNELS = frozenset({"Parameter", "Result", "Const"})


class OpenVINORunner(StoredRunner):
    """A stored program and, once it runs, what OpenVINO made of it. Threads may share it.

    Args:
        buffer: the program.

    Raises:
        ProgramError: the program is damaged, or something else.
    """

    def __init__(self, buffer: bytes) -> None:
        self._buffer = buffer
        self._stored = StoredProgram.of(buffer)
        self._told = _facts_of(self._stored)
        self._lock = threading.Lock()
        self._compiled: Any = None
        self._waiting: list[Any] = []
        super().__init__(_as_stored(self._stored, self._told), buffer)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the program; see :class:`torchquilt.backend.Runner`."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._load()
            request = self._waiting.pop() if self._waiting else self._compiled.create_infer_request()
        try:
            return self._outputs(request, self._given(inputs))
        finally:
            with self._lock:
                self._waiting.append(request)

    def profile(self, inputs: Sequence[Any], runs: int) -> Sequence[RunTimes]:
        """Run it and tell the times of each kernel; see :class:`torchquilt.backend.ProfilingRunner`."""
        measured = self._load(measured=True)
        request, given = measured.create_infer_request(), self._given(inputs)
        steps = _steps(executed_by(measured))
        found = []
        for number in range(runs + 1):
            self._outputs(request, given)
            times = [one for one in request.profiling_info if one.node_name in steps and one.real_time]
            kernels = tuple(
                KernelTime(one.node_type, one.real_time.total_seconds(), steps[one.node_name])
                for one in times
            )
            if number:
                found.append(RunTimes(request.latency / 1e3, kernels))
        return found

    def _load(self, *, measured: bool = False) -> Any:
        ov = openvino()
        weights = ov.Tensor(np.frombuffer(self._buffer, np.uint8))
        try:
            return compiled(ov.Core().read_model(self._stored.xml, weights), measured=measured)
        except RuntimeError as error:
            raise _failed("OpenVINO cannot load the program.", error) from error

    def _given(self, inputs: Sequence[Any]) -> list[Any]:
        pairs = zip(self._told.inputs, inputs, strict=True)
        return [_as_ov(value) for told, value in pairs if not told.is_constant]

    def _outputs(self, request: Any, given: list[Any]) -> list[Any]:
        try:
            for number, value in enumerate(given):
                request.set_input_tensor(number, value)
            request.infer()
        except RuntimeError as error:
            raise _failed("The program failed in OpenVINO.", error) from error
        return [
            told.constant if told.is_constant else _as_torch(request.get_output_tensor(told.number), told)
            for told in self._told.outputs
        ]


def _facts_of(stored: StoredProgram) -> Facts:
    """The facts that a program states about itself.

    Raises:
        ProgramError: it states none, or OpenVINO cannot read it.
    """
    ov = openvino()
    try:
        weights = ov.Tensor(np.frombuffer(stored.buffer, np.uint8))
        model = ov.Core().read_model(stored.xml, weights)
        return Facts.from_json(model.get_rt_info(list(FACTS)).astype(str))
    except Exception as error:  # reading what another version wrote fails in any way
        raise ProgramError(
            "The program cannot be read: it was written by another version.",
            expected="a program of this version of torchquilt-openvino",
            got=f"{type(error).__name__}: {error}",
            remedy="lower it again with what is installed here",
        ) from error


def _as_stored(stored: StoredProgram, told: Facts) -> StoredFacts:
    """The same for the core, with the operators of OpenVINO (``opset1.Convolution``)."""
    layers = ((one[1].decode(), one[2].decode()) for one in _LAYER.finditer(stored.xml))
    operators = dict.fromkeys(f"{version}.{kind}" for kind, version in layers if kind not in _NO_KERNELS)
    inputs, outputs = (tuple(map(_slot, leaves)) for leaves in (told.inputs, told.outputs))
    return StoredFacts(inputs, outputs, tuple(operators), structure=told.structure)


def _slot(told: Tensor) -> Slot:
    return Slot(
        told.dtype,
        tuple(told.high),
        told.low != told.high,
        tuple(range(len(told.high))),
        told.is_constant,
        told.constant,
    )


def _as_ov(value: torch.Tensor) -> Any:
    """A tensor for OpenVINO, which reads it where it lies."""
    ov = openvino()
    plain = value.detach().contiguous()
    stand_in = _AS_INTEGERS.get(plain.dtype)
    if stand_in is None:
        return ov.Tensor(plain.numpy(), shared_memory=True)
    return ov.Tensor(plain.view(stand_in).numpy(), ov.Shape(list(plain.shape)), ov.Type.bf16)


def _as_torch(tensor: Any, told: Tensor) -> torch.Tensor:
    """A copy of an output, in the dtype that the model returns it in."""
    dtype: torch.dtype = getattr(torch, told.dtype)
    if dtype in _AS_INTEGERS:
        return torch.from_numpy(np.array(tensor.data).view(np.int16)).view(dtype).reshape([*tensor.shape])
    return torch.from_numpy(np.array(tensor.data)).reshape([*tensor.shape]).to(dtype)


def _steps(kernels: Sequence[Executed]) -> dict[str, str]:
    """Name of each kernel → the step that it belongs to. A reorder belongs to the kernel that reads it."""
    readers: dict[str, str] = {}
    for kernel in kernels:
        for name in kernel.inputs:
            readers.setdefault(name, kernel.name)
    found: dict[str, str] = {}
    for kernel in reversed(kernels):
        step = kernel.name if kernel.operators else found.get(readers.get(kernel.name, ""), kernel.name)
        found[kernel.name] = step
    return found


def _failed(problem: str, error: RuntimeError) -> ProgramError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception from")]
    return ProgramError(
        problem,
        backend="CPU",
        got="; ".join((said or lines)[:3]),
        remedy="lower it again with the OpenVINO that is installed here, without what fails",
    )
