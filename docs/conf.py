"""How Sphinx builds the site: `./dev docs`. The pages are Markdown (myst); the API comes from docstrings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["AIOTRACE_PURE"] = "1"  # before the import: the classes of the C module have no docstrings

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent), str(HERE.parent / "sinks")]

import aiotrace  # noqa: E402

aiotrace.Event.__name__ = aiotrace.Event.__qualname__ = "Event"  # its public name: or it would be shown as an alias

project = "aiotrace"
author = "the aiotrace developers"
release = version = aiotrace.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cli_reference", "docstrings"]
myst_heading_anchors = 3  # links to headings work as on GitHub
myst_enable_extensions = ["attrs_inline"]
exclude_patterns = ["_build"]
highlight_language = "none"
suppress_warnings = ["ref.python"]  # `bytes` in a signature is the type, though three classes have such a field

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "aiotrace"
