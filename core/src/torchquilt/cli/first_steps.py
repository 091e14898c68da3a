"""The command without arguments: what is installed, and what to do next. Does not import torch."""

from __future__ import annotations

from torchquilt.cli.output import write, write_table
from torchquilt.plugins.listing import Backend, Backends

#: Lines that lead from nothing to a quantized model.
_STEPS = (
    ("torchquilt recipe new --backend {backend} --preset {preset} -o recipe.toml", "a recipe to start from"),
    ("torchquilt explain MODEL --recipe recipe.toml", "what would be quantized, and why not the rest"),
    ("torchquilt quantize MODEL --recipe recipe.toml --data DATA -o quantized.pt2", "quantize, and save"),
    ("torchquilt lower quantized.pt2 -o program --target {target}", "make a program for a runtime"),
    ("torchquilt --help", "all commands"),
)
#: The preset that most users begin with, where a backend has it.
_COMMON_PRESET = "static_int8_per_channel"


def show_first_steps() -> None:
    """Print the installed backends with their presets, the targets, and the commands to go on with."""
    from torchquilt import __version__
    from torchquilt.plugins.registry import installed

    found = installed()
    write(f"torchquilt {__version__}")
    rows = [(one.name, _kind(one), one.version, _presets(one)) for one in found]
    if rows:
        write_table([("plugin", "quantizes or runs", "version", "presets"), *rows], "installed")
    usable = [one for one in found if one.status == "ok" and one.manifest is not None]
    if not any(one.is_backend for one in usable):
        write(f"No backend can be used, so nothing can be quantized yet.\n{_advice(found)}")
        return
    write_table([("command", "what it does"), *_steps(usable)], "next")


def _kind(one: Backend) -> str:
    if one.status != "ok":
        return f"{one.status}: torchquilt plugins doctor says more"
    kinds = (("quantizes", one.is_backend), ("runs", one.is_target))
    return " and ".join(kind for kind, is_one in kinds if is_one)


def _presets(one: Backend) -> str:
    names = () if one.manifest is None else one.manifest.preset_names
    most = 4
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _advice(found: Backends) -> str:
    return "torchquilt plugins doctor says what is wrong." if found else repr(found)


def _steps(usable: list[Backend]) -> list[tuple[str, str]]:
    """The commands, about what is installed."""
    backends = [one for one in usable if one.is_backend and one.manifest is not None]
    common = [one for one in backends if one.manifest and _COMMON_PRESET in one.manifest.preset_names]
    backend = next(iter(common or backends))
    assert backend.manifest is not None  # it was looked at
    names = backend.manifest.preset_names
    preset = _COMMON_PRESET if _COMMON_PRESET in names else next(iter(names), "")
    targets = [one.name for one in usable if one.is_target]
    able = [name for name in targets if name in backend.manifest.targets or name == backend.name]
    words = {"backend": backend.name, "preset": preset, "target": next(iter(able), "")}
    steps = [(line, what) for line, what in _STEPS if able or "{target}" not in line]
    return [(line.format(**words), what) for line, what in steps]
