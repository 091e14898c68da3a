"""The page: a template, styles and scripts of this package, and plotly for its plots, all in one text.

The page loads nothing. Its content security policy allows no connection and no script but the ones that stand
in it, by their digests: a text of the model that got past all escaping would still not run.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import Any

from torchquilt.accuracy.report.plain import json_in_page
from torchquilt.errors import TorchquiltError

#: The scripts of the page, in the order in which they stand in it.
_SCRIPTS = ("elements.js", "tables.js", "plots.js", "graph.js", "detail.js", "page.js")
#: Modules of the extra ``report``, and the packages that have them.
_NEEDED = {"jinja2": "jinja2", "plotly.offline": "plotly"}


def check_is_installed() -> None:
    """Refuse to begin without what the page is made with.

    Raises:
        TorchquiltError: the extra ``report`` is not installed.
    """
    for name in _NEEDED:
        _package(name)


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise TorchquiltError(
            f"A report needs the package {_NEEDED[name]}, which is not installed.",
            expected=" and ".join(_NEEDED.values()),
            got=str(error),
            remedy="pip install 'torchquilt[report]'",
        ) from error


def rendered(facts: dict[str, Any], data: dict[str, Any]) -> str:
    """The text of the page.

    Args:
        facts: what the template shows.
        data: what the scripts show.
    """
    jinja = _package("jinja2")
    folder = files("torchquilt.accuracy.report") / "page"
    environment = jinja.Environment(
        loader=jinja.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}"
    script = '"use strict";\n' + "".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    packed, digest = _plotly()
    text: str = environment.get_template("page.html.jinja").render(
        **facts,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        data=json_in_page(data),
        plotly=packed,
        digests=f"'{_digest(script)}' '{digest}'",
    )
    return text


@functools.cache
def _plotly() -> tuple[str, str]:
    """The source of plotly.js, compressed, as text, and its digest. It is read when a plot is drawn first."""
    source: str = _package("plotly.offline").get_plotlyjs()
    packed = gzip.compress(source.encode(), mtime=0)
    return base64.b64encode(packed).decode(), _digest(source)


def _digest(script: str) -> str:
    """The digest of a script, as a content security policy has it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
