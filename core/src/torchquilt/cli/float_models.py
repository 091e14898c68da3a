"""The float model of a command line: a file, the folder of a Hugging Face model, or a function."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from torchquilt._internal.terminal import working
from torchquilt.cli.functions import check_is_function, made_by_function

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_FORMS = "a file of torch.export.save, the folder of a Hugging Face model, or module:function"


@attrs.frozen
class FloatModel:
    """A float model, as the command line names it.

    Args:
        text: as it was typed.
        path: the file or the folder; None for a function.
    """

    text: str
    path: Path | None

    def __str__(self) -> str:
        return self.text

    @property
    def read(self) -> tuple[Path, ...]:
        """The file or folder, for commands that must not write there."""
        return () if self.path is None else (self.path,)

    @property
    def nbytes(self) -> int | None:
        """Size of the file; None where there is none."""
        return self.path.stat().st_size if self.path is not None and self.path.is_file() else None

    def load(self, data: Path | None = None) -> ExportedProgram:
        """The exported model.

        Args:
            data: of the command, whose first batch a folder is exported with.

        Raises:
            ModelError: it cannot be made or exported.
            ArtifactError, OSError: as :func:`torchquilt.artifact.load_program`.
        """
        if self.path is None:
            return _exported(made_by_function(self.text), self.text)
        if self.path.is_dir():
            from torchquilt.cli.model_folders import export_folder

            with working(f"exporting {self.path}"):
                return export_folder(self.path, data)
        from torchquilt.artifact import load_program

        return load_program(self.path)


def _exported(made: Any, name: str) -> ExportedProgram:
    """The exported model of what a function returned."""
    from torch.export import ExportedProgram

    from torchquilt.errors import ModelError
    from torchquilt.pt2e.export import export_model

    if isinstance(made, ExportedProgram):
        return made
    if isinstance(made, tuple) and len(made) in (2, 3):
        with working("exporting"):
            exported = export_model(made[0], made[1], made[2] if len(made) == 3 else None)
        if isinstance(exported, ExportedProgram):
            return exported
    raise ModelError(
        f"The function {name} makes nothing that can be quantized.",
        expected="an ExportedProgram, or (model, example_inputs), or (model, example_inputs, dynamic_shapes)",
        got=f"{type(made).__module__}.{type(made).__qualname__}"
        + (f" of {len(made)}" if isinstance(made, tuple) else ""),
        remedy="return the module with one batch of inputs",
    )


class _FloatModelType(click.ParamType[FloatModel]):
    """Check which of the forms it is, before anything is imported."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> FloatModel:
        if isinstance(value, FloatModel):
            return value
        path = Path(value)
        if path.is_dir():
            if not (path / "config.json").is_file():
                self.fail(
                    f"The folder {value!r} has no config.json, as a Hugging Face model has.", param, ctx
                )
            return FloatModel(value, path)
        if path.exists():
            return FloatModel(value, path)
        if ":" not in value:
            self.fail(f"There is no {value!r}: MODEL is {_FORMS}.", param, ctx)
        check_is_function(value, "models:resnet")
        return FloatModel(value, None)


FLOAT_MODEL = _FloatModelType()
model_argument = click.argument("model", type=FLOAT_MODEL)
float_argument = click.argument("model", metavar="FLOAT", type=FLOAT_MODEL)
