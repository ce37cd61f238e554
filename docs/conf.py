"""Sphinx's settings. `make docs` builds the site into docs/_build; a warning ends it."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from generated_pages import copy_notebooks, write_pages  # noqa: E402, it lies beside this file

from dfm_jax import __version__  # noqa: E402

project = "dfm_jax"
author = "the authors of dfm_jax"
project_copyright = "the authors of dfm_jax, Apache-2.0"
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "docstring_equations",
]
included = ("equations_by_module", "tie", "theorems")
exclude_patterns = ["_build", *(f"_generated/{name}.md" for name in included)]
html_theme = "furo"
html_title = "dfm_jax"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["equations.css"]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True  # $$…$$ right behind a line of text
# The notebooks are committed as they were executed; `make notebooks` executes them anew.
nb_execution_mode = "off"

autodoc_use_type_comments = False  # we write none, and reading them fails on Python 3.13
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# `name` in a docstring is code, as in Markdown; where it is a name of ours it is a link.
default_role = "py:obj"
suppress_warnings = ["ref.python"]  # `Run` is a name in several rooms


# Links that are right where a file lies, and what the site calls them: by folder of the page.
LINKS = {
    "notebooks": {
        "../EQUATIONS.md": "../ledger.md",
        "../experiments/README.md": "../studies.md",
        "../docs/": "../",
    },
    "guides": {"../../notebooks/": "../notebooks/", "../../experiments/README.md": "../studies.md"},
    "": {"../notebooks/": "notebooks/", "../EQUATIONS.md": "ledger.md"},
}


def lead_to_pages(app, page: str, source: list[str]) -> None:
    """Sphinx's source-read."""
    folder = page.rpartition("/")[0]
    for file, its_page in LINKS.get(folder, {}).items():
        source[0] = source[0].replace(f"]({file}", f"]({its_page}")


def setup(app) -> None:
    """Write the pages that are made of the code before Sphinx looks for pages."""
    app.connect("builder-inited", lambda _: write_pages(HERE / "_generated"))
    app.connect("builder-inited", lambda _: copy_notebooks(HERE / "notebooks"))
    app.connect("source-read", lead_to_pages)
