"""How `make docs` builds the site: the repository's own Markdown pages, as they are on a code host.

The source folder is the root of the repository, so a link from one page to another, to an example
or to a source file is the same on a code host and in the site. No page has markup of Sphinx's own.
What a code host does by itself is done here: the lists of `docs/index.md` become the navigation
(`navigation.py`), and Mermaid blocks become the pictures of `docs/diagrams` (`diagrams.py`).

The build is strict (`-n -W`): it fails at a dead link, at a heading that a link names and no page
has, at a page that is not in the navigation, and at a diagram without a picture.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from diagrams import replace_diagrams  # noqa: E402
from navigation import add_navigation  # noqa: E402

project = "Layertap"
version = release = re.findall(
    r'^__version__ = "(.+)"$', (ROOT / "src/layertap/__init__.py").read_text(), re.MULTILINE
)[0]
copyright = "the authors of Layertap, Apache-2.0"

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "examples/README.md", "benchmarks/RESULTS.md"]
exclude_patterns = [".*", "build", "dist", "src", "tests", "layertap-demo", "**/__pycache__"]
myst_heading_anchors = 4  # a link may name any heading, as on a code host
nitpicky = True
smartquotes = False  # it would make a dash of the two hyphens of a flag
highlight_language = "none"  # blocks without a language are commands and their output

html_theme = "furo"  # its fonts are those of the reader's system: a page fetches nothing
html_title = f"Layertap {version}"
html_extra_path = ["extra"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Do what a code host does with the same pages."""
    app.connect("source-read", add_navigation)
    app.connect("source-read", replace_diagrams)
