"""The documentation site: `make site`. Pages are Markdown, and read as well in a repository's file view."""

from lightrft.version import __version__

project = "LightRFT"
author = "The LightRFT developers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"LightRFT {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
smartquotes = False  # --flags keep their dashes
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"  # docstrings write `names` as Markdown does
suppress_warnings = ["misc.highlighting_failure"]  # console output in blocks of commands
