"""A function that is named on the command line as ``module:function``: it judges models, or makes one."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from torchquilt.errors import (
    AccuracyError,
    LoweringError,
    ModelError,
    QuantizerError,
    TorchquiltError,
    did_you_mean,
)

_EVALUATE = "'--evaluate'"
_MODEL = "'MODEL'"
#: What a function makes → the error where it does not.
_ERRORS: dict[str, type[ModelError | QuantizerError | LoweringError]] = {
    "model": ModelError,
    "quantizer": QuantizerError,
    "contribution": LoweringError,
}


def _check_form(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        check_is_function(value, "metrics:accuracy")
    return value


def check_is_function(value: str, example: str) -> None:
    """Refuse what is not of the form ``module:function``, before anything is imported.

    The function may be one of a class: ``metrics:Scores.accuracy``.

    Raises:
        click.BadParameter: it is of another form.
    """
    module, _colon, path = value.partition(":")
    if module.endswith(".py") and path:
        stem = module.removesuffix(".py").replace("/", ".")
        raise click.BadParameter(f"{value!r} names a file, and not a module: write {stem}:{path}.")
    if not all(part.isidentifier() for part in (*module.split("."), *path.split("."))):
        raise click.BadParameter(f"{value!r} is not module:function, such as {example}.")


def evaluate_option(*, required: bool) -> Callable[[Any], Any]:
    """The option ``--evaluate``.

    Args:
        required: whether the command needs it.
    """
    return click.option(
        "--evaluate",
        callback=_check_form,
        metavar="MODULE:FUNCTION",
        required=required,
        help="Function of a module, in the current folder or installed, that is called with a model and "
        "returns its metric, a number. Larger is better.",
    )


minimize_option = click.option("--minimize", is_flag=True, help="Smaller metrics are better.")


@contextlib.contextmanager
def evaluate_function(name: str) -> Iterator[Callable[[Any], float]]:
    """Import a function, which can be called for as long as the block runs.

    As with ``python -m``, the current folder is the first that modules are looked for in. What the module and
    the function print goes to standard error, since standard output is that of the command.

    Raises:
        click.BadParameter: there is no such module or function, or it cannot be called with a model.
        AccuracyError: the module failed as it was imported.
    """
    with _importing_from_here():
        with contextlib.redirect_stdout(sys.stderr):
            function = _found(name, _EVALUATE, _judges_no_model)
        _check_takes(1, function, name, _EVALUATE, "with a model")

        @functools.wraps(function, updated=())
        def judged(model: Any) -> Any:
            with contextlib.redirect_stdout(sys.stderr):
                return function(model)

        yield judged


@contextlib.contextmanager
def _importing_from_here() -> Iterator[None]:
    here = str(Path.cwd())
    if getattr(sys.flags, "safe_path", False) or here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def made_by_function(name: str, what: str = "model", hint: str = _MODEL) -> Any:
    """Result of a function that is called without arguments.

    Otherwise as :func:`evaluate_function`.

    Args:
        name: ``module:function``.
        what: the thing that it makes, ``model``, ``quantizer`` or ``contribution``.
        hint: the parameter, for errors.

    Raises:
        click.BadParameter: there is no such module or function, or it needs arguments.
        ModelError, QuantizerError, LoweringError: the module failed as it was imported, or the function as it
            was called.
    """
    kind = _ERRORS[what]

    def failed(module: str, error: BaseException) -> TorchquiltError:
        return _failed_import(kind, module, error, f"a module with the function that makes the {what}")

    with _importing_from_here(), contextlib.redirect_stdout(sys.stderr):
        function = _found(name, hint, failed)
        _check_takes(0, function, name, hint, "without arguments")
        try:
            return function()
        except Exception as error:  # the user's own code
            raise kind(
                f"The function {name} fails as it is called.",
                expected=f"a {what}, made without arguments",
                got=f"{type(error).__name__}: {error}",
                remedy="mend it; --debug shows where it fails",
            ) from error


def _found(name: str, hint: str, failed: Callable[[str, BaseException], TorchquiltError]) -> Any:
    """The object of this name.

    Args:
        name: ``module:function``.
        hint: the parameter, for errors.
        failed: module and its exception → the error to raise.
    """
    wanted, _, path = name.partition(":")
    found: Any = _imported(wanted, hint, failed)
    for number, part in enumerate(path.split(".")):
        if not hasattr(found, part):
            owner = ":".join(filter(None, (wanted, ".".join(path.split(".")[:number]))))
            near = did_you_mean(part, (one for one in dir(found) if not one.startswith("_")))
            origin = getattr(sys.modules[wanted], "__file__", None)
            raise click.BadParameter(
                f"{owner} has no {part!r} ({origin or 'no file'})" + (f": {near}" if near else "."),
                param_hint=hint,
            )
        found = getattr(found, part)
    if not callable(found):
        raise click.BadParameter(
            f"{name} is no function: it is of type {type(found).__name__}.", param_hint=hint
        )
    return found


def _imported(name: str, hint: str, failed: Callable[[str, BaseException], TorchquiltError]) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise click.BadParameter(
                f"There is no module {missing!r} in {Path.cwd()}, and none is installed.", param_hint=hint
            ) from error
        raise failed(name, error) from error


def _judges_no_model(module: str, error: BaseException) -> TorchquiltError:
    return _failed_import(AccuracyError, module, error, "a module with the function that judges models")


def _failed_import(
    kind: type[AccuracyError | ModelError | QuantizerError | LoweringError],
    module: str,
    error: BaseException,
    expected: str,
) -> TorchquiltError:
    return kind(
        f"The module {module} fails as it is imported.",
        expected=expected,
        got=f"{type(error).__name__}: {error}",
        remedy=f"mend it: python -c 'import {module}' in this folder shows where it fails",
    )


def _check_takes(number: int, function: Any, name: str, hint: str, how: str) -> None:
    """Refuse what cannot be called with so many arguments, before data is read and a model calibrated."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function of C does not say it
        return
    try:
        signature.bind(*(object() for _ in range(number)))
    except TypeError as error:
        raise click.BadParameter(
            f"{name}{signature} cannot be called {how}: {error}.", param_hint=hint
        ) from error
