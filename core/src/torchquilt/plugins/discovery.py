"""Finding: which distribution says that it has a plugin of which name, and what the environment says of it.

Nothing of a plugin is imported here, and neither is torch.
"""

from __future__ import annotations

import difflib
import importlib
import os
import warnings
from collections.abc import Iterable, Sequence

import attrs
import importlib_metadata

from torchquilt.plugins import hookspecs

#: The entry-point group that plugins are found by.
GROUP = hookspecs.PROJECT
#: Names of the only plugins that may be used, separated by commas. Set but empty, it allows none.
ALLOW_VARIABLE = "TORCHQUILT_PLUGINS"
#: Names of plugins that may not be used, separated by commas. It wins over the other one.
BLOCK_VARIABLE = "TORCHQUILT_DISABLE_PLUGINS"


@attrs.frozen
class Offer:
    """A distribution says that it has a backend of this name; nothing of it has been imported."""

    name: str
    distribution: str
    version: str
    entry_point: importlib_metadata.EntryPoint | None
    unreadable: Exception | None = None

    @property
    def handles(self) -> frozenset[str]:
        """Names by which environment variables may call it."""
        return frozenset({normal(self.name), normal(self.distribution)})


def normal(name: str) -> str:
    """A name as it is compared: hyphens and dots count as underscores."""
    return name.strip().lower().replace("-", "_").replace(".", "_")


def find_offers() -> list[Offer]:
    """Look for entry points of the group in every distribution, sorted by name."""
    # Something may have been installed since the last look; finders remember the folders that they have read.
    importlib.invalidate_caches()
    offers: list[Offer] = []
    seen: set[str] = set()
    for dist in importlib_metadata.distributions():
        if not _mentions_group(dist):
            continue  # most distributions end here
        name, version = _identity(dist)
        if normal(name) in seen:
            continue  # hidden by the one that comes first on the path, as its modules are
        seen.add(normal(name))
        offers += _offers_of(dist, name, version)
    return sorted(offers, key=lambda offer: (offer.name, offer.distribution))


def _mentions_group(dist: importlib_metadata.IDistribution) -> bool:
    try:
        return f"[{GROUP}]" in (dist.read_text("entry_points.txt") or "")
    except (OSError, UnicodeError):
        return False  # damaged, and nothing says that it has to do with us


def _identity(dist: importlib_metadata.IDistribution) -> tuple[str, str]:
    """Name and version of a distribution, also of one whose metadata was lost in a failed install."""
    try:
        return dist.name or "unknown", dist.version or "unknown"
    except Exception:  # each kind of distribution fails in its own way where its metadata is gone
        return "unknown", "unknown"


def _offers_of(dist: importlib_metadata.IDistribution, name: str, version: str) -> Iterable[Offer]:
    try:
        entry_points = tuple(dist.entry_points.select(group=GROUP))
    except Exception as error:  # one that is damaged must not hide the others
        # The file cannot be read, so neither can the name of the backend; the package is all that is known.
        return [Offer(normal(name), name, version, None, error)]
    return [Offer(point.name, name, version, point) for point in entry_points]


# --- The environment variables ------------------------------------------------------------------------------


def _listed(variable: str) -> tuple[str, ...] | None:
    """The names in an environment variable, or None when it is not set."""
    text = os.environ.get(variable)
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def disabled_by(offer: Offer) -> str | None:
    """Variable of the environment that disables a plugin, as the end of a sentence, or None."""
    if offer.handles & {normal(name) for name in _listed(BLOCK_VARIABLE) or ()}:
        return f"by {BLOCK_VARIABLE}, which names it"
    allowed = _listed(ALLOW_VARIABLE)
    if allowed is not None and not offer.handles & {normal(name) for name in allowed}:
        return f"by {ALLOW_VARIABLE}, which does not name it"
    return None


def warn_of_strangers(offers: Sequence[Offer]) -> None:
    """Warn of names in the environment variables that have no effect, since nothing installed has them."""
    handles = {handle: offer.name for offer in offers for handle in offer.handles}
    for variable in (ALLOW_VARIABLE, BLOCK_VARIABLE):
        for name in _listed(variable) or ():
            if normal(name) in handles:
                continue
            near = nearest(name, handles)
            hint = f"did you mean {near[0]!r}?" if near else installed_names(offers)
            warnings.warn(
                f"{variable} names {name!r}, but no installed plugin is called that: {hint}", stacklevel=4
            )


# --- Names that are near ------------------------------------------------------------------------------------


def nearest(word: str, candidates: Iterable[str]) -> list[str]:
    """The candidates that somebody may have meant, the nearest first."""
    return difflib.get_close_matches(normal(word), list(candidates), n=3)


def installed_names(offers: Sequence[Offer]) -> str:
    """Names of the installed plugins, as the end of a sentence."""
    names = sorted({offer.name for offer in offers})
    return f"installed are {', '.join(names)}" if names else "none is installed"
