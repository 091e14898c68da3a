"""Choice of the lowering target where the user names none. Importing this module does not import torch."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torchquilt.errors import LoweringError
from torchquilt.plugins import registry
from torchquilt.plugins.listing import KNOWN


def target_of(backends: Collection[str]) -> str:
    """Name of the one installed target that each of these backends names in its manifest.

    Args:
        backends: names of installed backends. Without any, each installed target is a candidate.

    Raises:
        LoweringError: there is none, or there are several; lists them.
        PluginNotFoundError, PluginLoadError, PluginConflictError: a backend cannot be asked.
    """
    named = {backend: registry.targets_of(backend) for backend in backends}
    shared = [target for target in _all_of(named) if all(target in own for own in named.values())]
    candidates = [target for target in installed_targets() if target in shared or not named]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise LoweringError(
            "This model can be lowered to several installed targets.",
            expected=f"one of: {', '.join(candidates)}",
            got="target=None",
            remedy=f"name one: lower(..., target={candidates[0]!r})",
        )
    raise LoweringError(
        "No installed lowering target is one that each backend of this model names.",
        expected="; ".join(f"{backend}: {_listed(own)}" for backend, own in named.items())
        or "an installed lowering target",
        got=f"installed: {_listed(installed_targets())}",
        remedy=_remedy(shared, is_free=not named),
    )


def installed_targets() -> tuple[str, ...]:
    """Names of the installed lowering targets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the environment, of which loading a plugin warns
        return tuple(dict.fromkeys(plugin.name for plugin in registry.targets()))


def _all_of(named: dict[str, tuple[str, ...]]) -> list[str]:
    return [*dict.fromkeys(target for own in named.values() for target in own)]


def _listed(targets: Collection[str]) -> str:
    return ", ".join(targets) or "none"


def _remedy(shared: Collection[str], *, is_free: bool) -> str:
    """Remedy where no installed target fits."""
    published = [
        f"pip install {known.distribution}"
        for known in KNOWN
        if known.kind == "target" and (is_free or known.name in shared)
    ]
    if published:
        return " or ".join(published)
    if shared or is_free:
        return "install the plugin that has it"
    return "lower with the backends of one target: lower(..., target=..., backends=[...])"
