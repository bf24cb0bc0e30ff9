"""The settings of Sphinx: ``make docs`` builds these pages, and a warning is an error."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "extensions")]

import fastseg  # noqa: E402

project = "fastseg"
author = "the fastseg authors"
copyright = "the fastseg authors, Apache License 2.0"
version = release = fastseg.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "benchmark_tables",
    "mathml",
]
exclude_patterns = ["_generated/*"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

default_role = "py:obj"  # what docstrings put in single backticks is a name
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"fastseg {version}"
html_static_path = ["static"]
html_css_files = ["fastseg.css"]
html_copy_source = False
html_math_renderer = "mathml"


def _leave_out_fields(app, what, name, member, skip, options) -> bool | None:
    """Leaves out a NamedTuple's fields, which its docstring describes among its attributes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def setup(app) -> None:
    """Registers what is left out of the API pages."""
    app.connect("autodoc-skip-member", _leave_out_fields)
