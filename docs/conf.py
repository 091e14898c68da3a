"""Settings of the documentation site: ``make docs`` builds it."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extension"))

project = "torchquilt"
author = "torchquilt contributors"
copyright = author  # noqa: A001 (Sphinx calls it so)
release = version = metadata.version("torchquilt")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "torchquilt_site",
]
exclude_patterns = ["_build", "_downloads", "_extension"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# The blocks of C++, TOML and shell are shown as they are, too.
highlight_language = "text"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"torchquilt {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["support-matrix.js"]
html_copy_source = False
html_show_sphinx = False
