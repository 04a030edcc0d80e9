"""From a template and data to one HTML file that needs nothing else; all text is escaped."""

from __future__ import annotations

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image


def render(template: str, **values: Any) -> str:
    """The page ``templates/<template>`` filled with ``values``; only values of type Markup are taken as HTML."""
    environment = Environment(
        loader=PackageLoader("blip_fast.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def inline_svg(svg: str) -> Markup:
    """SVG text made by this package, to stand in a page as it is."""
    return Markup(svg)


def picture_uri(picture: Image.Image) -> str:
    """A picture as a PNG data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
