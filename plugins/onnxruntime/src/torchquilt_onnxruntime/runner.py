"""Running a stored program in this process, on ONNX Runtime's CPU provider."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from torchquilt import ProgramError
from torchquilt.backend import RunTimes, StoredFacts, StoredRunner
from torchquilt_onnxruntime.packages import required
from torchquilt_onnxruntime.stored import StoredModel

PROVIDER = "CPUExecutionProvider"
#: Errors alone: what the runtime warns of is said by the ledger.
_SEVERITY = 3
#: Products of floats with stored integers round the floats to 8 bits otherwise, as no converted model does.
_NOT_ROUNDED = ("session.qdq_matmulnbits_accuracy_level", "1")


def options() -> Any:
    """Options of a session: all optimizations, no log."""
    runtime = required("onnxruntime", to_run=True)
    made = runtime.SessionOptions()
    made.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    made.log_severity_level = _SEVERITY
    made.add_session_config_entry(*_NOT_ROUNDED)
    return made


def session(model: bytes, chosen: Any = None, files: Mapping[str, bytes] | None = None) -> Any:
    """A session of the runtime.

    Args:
        model: the file.
        chosen: options of the session.
        files: those beside it, name → content.

    Raises:
        ProgramError: the runtime refuses the model; has its own words.
    """
    runtime = required("onnxruntime", to_run=True)
    chosen = chosen or options()
    if files:
        sizes = [len(content) for content in files.values()]
        chosen.add_external_initializers_from_files_in_memory(list(files), list(files.values()), sizes)
    try:
        return runtime.InferenceSession(model, chosen, providers=[PROVIDER])
    except Exception as error:  # the binding has an exception for each status, and no common base
        raise ProgramError(
            "ONNX Runtime cannot load the program.",
            backend=PROVIDER,
            expected="operators and dtypes that its CPU provider has kernels for",
            got=words(error),
            remedy="see what the runtime says",
        ) from error


def words(error: BaseException) -> str:
    """An error of the runtime in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


class ONNXRuntimeRunner(StoredRunner):
    """A stored program and, once it runs, the session of it. Threads may share it, and run at once.

    Args:
        buffer: the file.
        files: those beside it, name → content.

    Raises:
        ProgramError: a file is damaged, or something else.
    """

    def __init__(self, buffer: bytes, files: Mapping[str, bytes] | None = None) -> None:
        self._stored = stored = StoredModel.of(buffer, files or {})
        self._session: Any = None
        self._lock = threading.Lock()
        structure = stored.signature.structure
        facts = StoredFacts(stored.inputs, stored.outputs, stored.operators, structure=structure)
        super().__init__(facts, buffer, files)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run the program; see :class:`torchquilt.backend.Runner`."""
        signature = self._stored.signature
        names = [leaf.name for leaf in signature.outputs if not leaf.is_constant]
        try:
            values = self._loaded().run_with_ort_values(names, self._given(inputs))
        except ProgramError:
            raise
        except Exception as error:  # likewise
            raise _failed(error) from error
        found = dict(zip(names, values, strict=True))
        return [
            leaf.constant if leaf.is_constant else _from_runtime(found[leaf.name])
            for leaf in signature.outputs
        ]

    def profile(self, inputs: Sequence[Any], runs: int) -> Sequence[RunTimes]:
        """Tell how long each kernel takes; see :class:`torchquilt.backend.ProfilingRunner`."""
        from torchquilt_onnxruntime.optimized import Optimized
        from torchquilt_onnxruntime.profiling import profiled

        buffer, files = self._stored.buffer, self._stored.files
        steps = Optimized.of(buffer, required("onnx").ModelProto.FromString(buffer), files).steps()
        names = [leaf.name for leaf in self._stored.signature.outputs if not leaf.is_constant]
        try:
            return profiled(buffer, names, self._given(inputs), runs, steps, files)
        except ProgramError:
            raise
        except Exception as error:  # likewise
            raise _failed(error) from error

    def values(self, inputs: Sequence[Any]) -> dict[tuple[str, int], Any]:
        """Tell what kernels return; see :class:`torchquilt.backend.ObservableRunner`."""
        from torchquilt_onnxruntime.values import values_between

        try:
            return values_between(self._stored, self._given(inputs))
        except ProgramError:
            raise
        except Exception as error:  # likewise
            raise _failed(error) from error

    def _given(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """The tensors of a call, by the names that they have in the file."""
        return {
            leaf.name: _to_runtime(value)
            for leaf, value in zip(self._stored.signature.inputs, inputs, strict=True)
            if not leaf.is_constant
        }

    def _loaded(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session = session(self._stored.buffer, files=self._stored.files)
            return self._session


def _failed(error: Exception) -> ProgramError:
    return ProgramError(
        "The program failed in ONNX Runtime.",
        backend=PROVIDER,
        got=words(error),
        remedy="see what the runtime says",
    )


def _to_runtime(value: Any) -> Any:
    """A tensor of torch as one of the runtime, which reads it as it lies in memory."""
    import torch

    runtime = required("onnxruntime", to_run=True)
    return runtime.OrtValue.ortvalue_from_numpy(torch.as_tensor(value).detach().contiguous().numpy())


def _from_runtime(value: Any) -> Any:
    import torch

    return torch.from_numpy(value.numpy())
