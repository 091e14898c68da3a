"""The recipe itself. Importing this module does not import torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from torchquilt._internal.atomic_files import replacing
from torchquilt.errors import RecipeError
from torchquilt.recipe.sections import Parts
from torchquilt.recipe.toml_reader import read
from torchquilt.recipe.toml_writer import write

if TYPE_CHECKING:
    from torchquilt.quantizers.composable import ComposableQuantizer


@attrs.frozen
class Recipe:
    """The whole intent of a composition, as a value. Made by :meth:`load`, :meth:`from_toml` or :meth:`of`.

    Two recipes are equal if they say the same: comments, the order of keys, and fields that are given their
    default make no difference. What only the backend could tell does: a preset by its name is not the same as
    spelled out, ``torch.nn.Linear`` not as ``nn.Linear``, nor a rule as the default of the backend that it
    repeats. :meth:`of` writes the first of each two, so ``Recipe.of(recipe.quantizer())`` brings any recipe
    into one form, and leaves one that is in this form as it is.

    Args:
        quantizers: in order of precedence; a tuple among them is a nested composition.
    """

    quantizers: Parts

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe from a file. Imports neither torch nor a plugin.

        Raises:
            RecipeError: the file cannot be read, or is no recipe; it has the file, the line and the key.
        """
        file = os.fspath(path)
        try:
            text = Path(file).read_text(encoding="utf-8-sig")  # some editors begin with a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                "The recipe cannot be read.",
                file=file,
                expected="a TOML file, in UTF-8",
                got=f"{type(error).__name__}: {error}",
                remedy="check the path; Recipe.of(quantizer).save(path) writes one",
            ) from error
        return cls.from_toml(text, file=file)

    @classmethod
    def from_toml(cls, text: str, *, file: str | None = None) -> Recipe:
        """Read a recipe from text, which errors call ``file``."""
        return cls(read(text, file))

    @classmethod
    def of(cls, quantizer: object) -> Recipe:
        """The recipe that makes an equal quantizer; a quantizer that is no composition counts as one of one.

        A config that equals a preset of the backend is written as the name of the preset.

        Raises:
            RecipeError: what is read would not be equal: a quantizer that no installed backend provides, a
                filter function, a table of its own.
            IntentError: it is no quantizer.
        """
        from torchquilt.recipe.quantizers import describe

        return cls(describe(quantizer))

    def quantizer(self) -> ComposableQuantizer:
        """Make the quantizers. Loads the plugins that the recipe names, and no others.

        Raises:
            RecipeError: a backend or a preset is not there, a type is not known, or a backend supports a
                config nowhere; it has the file, the line and the key. The error of the backend is its cause.
        """
        from torchquilt.recipe.quantizers import make

        return make(self.quantizers)

    def to_toml(self) -> str:
        """The recipe as text. Equal recipes give the same text."""
        return write(self.quantizers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe to a file. The file is replaced as a whole, or left as it was.

        Raises:
            RecipeError: the file cannot be written.
        """
        try:
            data = self.to_toml().encode()
            with replacing(path) as file:
                file.write(data)
        except (OSError, UnicodeEncodeError) as error:
            raise RecipeError(
                "The recipe cannot be written.",
                file=os.fspath(path),
                expected="a folder that can be written to, and names that are Unicode",
                got=f"{type(error).__name__}: {error}",
                remedy="check the path; what stood there before is as it was",
            ) from error
