"""Sphinx configuration of the documentation; `make docs` builds it and treats every warning as an error."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "slicevote"
author = "The slicevote maintainers"
project_copyright = author
release = version = installed_version("slicevote")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "generated_reference",
    "pictures",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]

# --- Markdown ---
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# --- Python API ---
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "exclude-members": "of"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
# Every reference to a name of ours must resolve. Other packages' names would need their inventories, from the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!slicevote).*"), ("py:.*", r"slicevote\.v1\..*")]

# --- HTML: nothing is loaded from elsewhere ---
html_theme = "pydata_sphinx_theme"
html_title = "slicevote"
html_static_path = ["_static"]
html_css_files = ["slicevote.css"]
html_favicon = "_static/logo.svg"
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "tutorial/index": []}
html_theme_options = {
    "logo": {"text": "slicevote", "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
