"""Every exception that torchquilt raises on purpose.

Each one answers the same questions, and keeps the answers as fields so that a program can read them:
what went wrong, at which ``node``, in which ``quantizer``, what was ``expected``, what it ``got``, and
the ``remedy``. An exception that also means something to Python (a bad value, a missing name) derives
from the builtin of that meaning, so that ``except ValueError`` works as people expect.

This module imports neither torch nor anything else of torchquilt.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any


def did_you_mean(word: str, candidates: Iterable[str], most: int = 3) -> str | None:
    """A remedy for a name that nothing has: the names that come nearest; None where none does."""
    near = difflib.get_close_matches(word, list(candidates), n=most)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else None


class TorchquiltError(Exception):
    """Base of all errors of torchquilt.

    Args:
        problem: one sentence that says what is wrong.
        node: name of the graph node it is about, with its module path where that is known.
        quantizer: name of the quantizer (or quantizers) that it is about.
        expected: what would have been accepted.
        got: what was found instead.
        remedy: what the reader can do now.
    """

    def __init__(
        self,
        problem: str,
        *,
        node: object = None,
        quantizer: object = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.node = None if node is None else str(node)
        self.quantizer = None if quantizer is None else str(quantizer)
        self.expected = expected
        self.got = got
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        details = (*self._about(), ("expected", self.expected), ("got", self.got), ("to fix it", self.remedy))
        return "\n".join(
            [self.problem, *(f"  {label}: {value}" for label, value in details if value is not None)]
        )

    def _about(self) -> list[tuple[str, object]]:
        """Subjects of the error, in the order in which they are printed; None is not known."""
        return [("node", self.node), ("quantizer", self.quantizer)]

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with `args` only and drop the keyword fields.
        return _rebuild, (type(self), self.problem, dict(self.__dict__))


def _rebuild(cls: type[TorchquiltError], problem: str, fields: dict[str, Any]) -> TorchquiltError:
    """Make an error again from its pickled state (errors cross processes in tests and torchrun)."""
    error = cls.__new__(cls)
    Exception.__init__(error, problem)
    error.__dict__.update(fields)
    return error


class SpecError(TorchquiltError, ValueError):
    """A quantization spec or config whose fields contradict each other. ``field`` names the field."""

    def __init__(self, problem: str, *, field: str, **details: Any) -> None:
        super().__init__(problem, **details)
        self.field = field


class UnsupportedConfigError(TorchquiltError, ValueError):
    """A config was asked of a backend that has no support row for it."""


class PatternError(TorchquiltError, ValueError):
    """An operator pattern or a support table that is not well formed."""


class IntentError(TorchquiltError, ValueError):
    """A rule of the user that cannot take effect: a name, a type or a filter that is not understood."""


class AnnotationError(TorchquiltError, ValueError):
    """An annotation on a node that is malformed, is not ours, or points to something that is not there."""


class CompositionError(TorchquiltError, RuntimeError):
    """A quantizer of a composition changed what another one had decided."""


class QuantizerError(TorchquiltError, RuntimeError):
    """A quantizer failed, or did what a step of the flow does not allow.

    Where it raised an exception that is none of torchquilt, that is the ``__cause__``.
    """


class SharingError(TorchquiltError, ValueError):
    """Quantization specs that are tied together and cannot be brought to one set of parameters."""


class ModelError(TorchquiltError, ValueError):
    """The model that was handed in is not one that this step of the flow takes."""


class ArtifactError(TorchquiltError, ValueError):
    """A model that cannot be saved, or a file that is not a saved model, was changed, or cannot be trusted.

    ``path`` is the file, where there is one; ``differences`` lists what in it is not as its lock says.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | os.PathLike[str] | None = None,
        differences: tuple[Any, ...] = (),
        **details: Any,
    ) -> None:
        super().__init__(problem, **details)
        self.path = None if path is None else os.fspath(path)
        self.differences = differences


class LedgerError(TorchquiltError, KeyError):
    """A ledger was asked for a row that it does not have."""


class CalibrationError(TorchquiltError, RuntimeError):
    """Calibration data that the prepared model cannot take, or that leaves a tensor unseen.

    ``batch`` is the number of the batch, from 0, where it is about one.
    """

    def __init__(self, problem: str, *, batch: int | None = None, **details: Any) -> None:
        super().__init__(problem, **details)
        self.batch = batch


class LoweringError(TorchquiltError, RuntimeError):
    """A quantized model that cannot be lowered. ``backend`` is what it is about, where it is about one."""

    def __init__(self, problem: str, *, backend: object = None, **details: Any) -> None:
        super().__init__(problem, **details)
        self.backend = None if backend is None else str(backend)

    def _about(self) -> list[tuple[str, object]]:
        return [*super()._about(), ("backend", self.backend)]


class ProgramError(LoweringError):
    """A lowered program that is damaged, needs what is not here, or fails when it is loaded or run.

    ``path`` is its file, where there is one. ``operators`` are the kernels of the runtime that it is about.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | os.PathLike[str] | None = None,
        operators: tuple[str, ...] = (),
        **details: Any,
    ) -> None:
        super().__init__(problem, **details)
        self.operators = operators
        self.path = None if path is None else os.fspath(path)

    def _about(self) -> list[tuple[str, object]]:
        return [*super()._about(), ("file", self.path)]


class ProgramInputError(ProgramError, ValueError):
    """Inputs that a lowered program does not take: their number, a dtype, a shape."""


class MissingRuntimeError(ProgramError):
    """A lowered program that cannot run here, since the runtime, a delegate or kernels are missing."""


class VerificationError(LoweringError):
    """A lowered program that does not compute what the model computes.

    ``verification`` says how each output compares.
    """

    def __init__(self, problem: str, *, verification: Any = None, **details: Any) -> None:
        super().__init__(problem, **details)
        self.verification = verification


class AccuracyError(TorchquiltError, RuntimeError):
    """A comparison, a sensitivity or a search that cannot be done with what it was given.

    ``batch`` is the number of the batch, from 0, where it is about one.
    """

    def __init__(self, problem: str, *, batch: int | None = None, **details: Any) -> None:
        super().__init__(problem, **details)
        self.batch = batch


class PluginError(TorchquiltError):
    """Base of what can go wrong with finding and loading a plugin. ``plugin`` is its name."""

    def __init__(self, problem: str, *, plugin: object = None, **details: Any) -> None:
        super().__init__(problem, **details)
        self.plugin = None if plugin is None else str(plugin)

    def _about(self) -> list[tuple[str, object]]:
        return [*super()._about(), ("plugin", self.plugin)]


class PluginNotFoundError(PluginError, LookupError):
    """No installed plugin has the name that was asked for."""


class PluginConflictError(PluginError, LookupError):
    """Several installed distributions claim one plugin name."""


class PluginLoadError(PluginError, ImportError):
    """A plugin is installed but cannot be used; the original exception is its ``__cause__``."""


class RecipeError(TorchquiltError, ValueError):
    """A recipe that cannot be read, or something that a recipe cannot say.

    Args:
        problem: one sentence that says what is wrong.
        file: the file that it is about.
        line: the line in it, from 1.
        key: the key, from the top of the document: ``quantizer[1].global.weight.dtype``.
        details: as with :class:`TorchquiltError`.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(problem, **details)
        self.file = file
        self.line = line
        self.key = key

    def __str__(self) -> str:
        # The form that editors and terminals make a link of.
        where = ":".join(str(part) for part in (self.file, self.line) if part is not None)
        problem, *details = super().__str__().split("\n")
        if self.file is None and self.line is not None:
            where = f"line {self.line}"
        first = f"{where}: {problem}" if where else problem
        return "\n".join([first, *([f"  key: {self.key}"] if self.key else []), *details])
