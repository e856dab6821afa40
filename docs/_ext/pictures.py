"""Sphinx extension: puts an SVG of docs/images into the page itself, so that it follows the light and dark themes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

IMAGES = Path(__file__).resolve().parents[1] / "images"


class Picture(SphinxDirective):
    """`{picture} NAME.svg`."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Return the SVG as HTML."""
        file = IMAGES / self.arguments[0]
        self.env.note_dependency(str(file))
        return [nodes.raw("", f'<div class="picture">{file.read_text()}</div>', format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}
