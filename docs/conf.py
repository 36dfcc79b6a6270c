"""Builds the documentation: `python -m sphinx -W docs docs/_build`."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "hfp"
author = "The hfp authors"
copyright = "The hfp authors"  # noqa: A001  (Sphinx reads this name)
release = metadata.version("hfp")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "declared",
    "elsewhere",
    "formulas",
]
exclude_patterns = ["_build"]
html_math_renderer = "mathml"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages of the repository's own folders begin where their readers need them to

default_role = "code"  # docstrings name arguments and functions in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "hfp"
html_static_path = ["_static"]
html_css_files = ["hfp.css"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html", "sidebar/navigation.html",
        "sidebar/scroll-end.html", "sidebar/versions.html",
    ]
}  # fmt: skip
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
