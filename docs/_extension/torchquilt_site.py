"""Generated text, notebooks of pages with code, and links to the repository, for Sphinx."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generated_tables import ROOT, filled
from page_blocks import notebook_of, pages_with_code, script_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_DOCS = ROOT / "docs"
#: Files that the reader of a page can download.
_DOWNLOADS = _DOCS / "_downloads"
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./|docs/|\w)[^):#]*)(#[^)]*)?\)")
_TITLE = re.compile(r"\A(# .*\n)")


def repository() -> str:
    """Address of the repository, as the distribution tells it; empty where it tells none."""
    project = tomllib.loads((ROOT / "core/pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = {key.lower(): value for key, value in project.get("urls", {}).items()}
    return str(urls.get("repository") or urls.get("source") or "").rstrip("/")


def _name(page: Path) -> str:
    return page.relative_to(_DOCS).with_suffix("").as_posix().replace("/", "-")


def _pages_to_download() -> list[Path]:
    return [page for page in pages_with_code(_DOCS) if page.name != "index.md"]


def write_downloads(_: Sphinx) -> None:
    """Write the notebook and the script of each page with code."""
    _DOWNLOADS.mkdir(exist_ok=True)
    for page in _pages_to_download():
        text = page.read_text(encoding="utf-8")
        for suffix, made in ((".ipynb", notebook_of(text)), (".py", script_of(text))):
            path = _DOWNLOADS / f"{_name(page)}{suffix}"
            if not path.exists() or path.read_text(encoding="utf-8") != made:
                path.write_text(made, encoding="utf-8")


def _rewritten_links(text: str, folder: Path) -> str:
    """Links to files outside of the site as links to the repository, or as their text where it has none."""
    address = repository()

    def link(found: re.Match[str]) -> str:
        path = (folder / found[2]).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            return found[0]
        if path.is_relative_to(_DOCS) and path.suffix == ".md":
            return f"[{found[1]}](/{path.relative_to(_DOCS).as_posix()}{found[3] or ''})"
        if path.is_relative_to(_DOCS):
            return found[0]
        kind = "tree" if path.is_dir() else "blob"
        return (
            f"[{found[1]}]({address}/{kind}/main/{path.relative_to(ROOT).as_posix()})"
            if address
            else found[1]
        )

    return _LINK.sub(link, text)


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Put generated text into a page, and the links to its notebook and script below its title."""
    page = Path(app.env.doc2path(name))
    if page.suffix != ".md":
        return
    included = re.search(r"^<!-- generated: file (\S+) -->$", source[0], re.MULTILINE)
    folder = (ROOT / included[1]).parent if included else page.parent
    text = _rewritten_links(filled(source[0]), folder)
    download = _DOWNLOADS / f"{_name(page)}.ipynb"
    if page in _pages_to_download():
        links = (
            f"{{download}}`Jupyter notebook </_downloads/{download.name}>` · "
            f"{{download}}`Python script </_downloads/{download.stem}.py>`"
        )
        text = _TITLE.sub(lambda found: f"{found[1]}\n{links}\n", text, count=1)
    source[0] = text


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_downloads)
    app.connect("source-read", read_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
