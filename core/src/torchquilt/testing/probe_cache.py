"""Cache of probed capabilities, by content: the class of a quantizer, its config, and versions."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import importlib_metadata
import torch
from torch.utils.weak import WeakIdKeyDictionary

from torchquilt._internal.atomic_files import replacing
from torchquilt.errors import PatternError
from torchquilt.support.capabilities import Capabilities
from torchquilt.testing.probe_child import ALL, limit

#: The folder of the cache; without it ``torchquilt`` in the user's folder of caches.
VARIABLE = "TORCHQUILT_CACHE"

_PACKAGES = ("torchquilt", "torch")
_PLAIN = (str, bytes, int, float, bool, type(None), torch.dtype, torch.device)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

# Value that was used → its content after use, and before.
_USED: Any = WeakIdKeyDictionary()


@attrs.frozen(eq=False)
class Subject:
    """The content that probed rows depend on, under which they are kept.

    The folder is ``probed`` in the one that ``TORCHQUILT_CACHE`` names, by default ``~/.cache/torchquilt``.
    It may be deleted at any time.

    Args:
        value: the object that is configured: its attributes count, and the source of its class.
        packages: the distributions whose versions count besides those of torchquilt and torch.
    """

    value: Any
    packages: tuple[str, ...] = ()

    @property
    def versions(self) -> tuple[tuple[str, str], ...]:
        """Name and version of each package that takes part, as far as they are installed."""
        found = []
        for name in (*_PACKAGES, *self.packages):
            with contextlib.suppress(importlib_metadata.PackageNotFoundError):
                found.append((name, importlib_metadata.version(name)))
        return tuple(found)

    @property
    def file(self) -> Path:
        """The file of the rows: one for all subjects with this content."""
        source = [_source(cls) for cls in type(self.value).__mro__]
        # Within another limit more may be found, or less.
        limits = [limit()] * (limit() != ALL)
        text = repr([self.versions, source, self._content, *limits])
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(os.environ.get(VARIABLE) or Path(home, "torchquilt"))
        return folder / "probed" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"

    @property
    def _content(self) -> str:
        content = _text(self.value)
        after, before = _USED.get(self.value, (content, content))
        return str(before) if content == after else content

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Count as no content what a block adds to the value, as NNCF's algorithms note what they ran on."""
        before = self._content
        yield
        after = _text(self.value)
        if after != before:
            _USED[self.value] = (after, before)

    def known(self) -> Capabilities | None:
        """The rows that were kept; None where there are none, or the file is damaged."""
        with contextlib.suppress(OSError, ValueError, PatternError):
            return Capabilities.from_json(self.file.read_text(encoding="utf-8"))
        return None

    def save(self, found: Capabilities) -> None:
        """Keep rows in a file, which is written whole or not at all; nothing where that cannot be."""
        with contextlib.suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as file:
                file.write(found.to_json().encode())


def _source(cls: type) -> str:
    with contextlib.suppress(OSError, TypeError):
        return inspect.getsource(cls)
    return cls.__qualname__


def _text(value: Any, above: tuple[int, ...] = ()) -> str:
    """A text that says the content of a value, and no addresses."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in above:
        return "…"
    inner = functools.partial(_text, above=(*above, id(value)))
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{inner(name)}: {inner(each)}' for name, each in value.items()))}}}"
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [inner(each) for each in value]
        return f"[{', '.join(parts if isinstance(value, (list, tuple)) else sorted(parts))}]"
    if isinstance(value, functools.partial):
        return inner([value.func, value.args, value.keywords])
    if isinstance(value, torch.Tensor):
        return repr(value.tolist())
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        code = (value.__qualname__, value.__code__.co_code, value.__code__.co_names)
        return inner([*code, repr(value.__code__.co_consts), value.__defaults__, cells])
    kind = type(value)
    if (
        isinstance(value, type)
        or kind.__module__.partition(".")[0] == "torch"
        or not hasattr(value, "__dict__")
    ):
        return _ADDRESS.sub("", repr(value))
    content = f"{kind.__module__}.{kind.__qualname__}{inner(vars(value))}"
    # Names that an object makes of its own address, as those of NNCF's algorithms, are no content.
    for address in (id(value), object.__hash__(value)):
        content = content.replace(str(address), "…")
    return content
