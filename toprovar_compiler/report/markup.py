"""Builds HTML in which no text can become a tag: whatever is not markup already is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_EMPTY = ("img", "link", "meta")
# A line break after these changes nothing on the page, and makes the source readable.
_LINES = ("figure", "h1", "h2", "h3", "head", "header", "li", "p", "pre", "section", "table", "tr", *_EMPTY)


class Markup(str):
    """HTML that is escaped where it has to be."""

    __slots__ = ()


def markup(*parts: object) -> Markup:
    """The parts after each other; those that are no :class:`Markup` are text."""
    return Markup("".join(p if isinstance(p, Markup) else html.escape(str(p)) for p in parts))


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """``<tag attributes>children</tag>``; ``class_`` and ``for_`` stand for names that Python reserves."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
    )
    end = "" if tag in _EMPTY else f"{markup(*children)}</{tag}>"
    return Markup(f"<{tag}{given}>{end}" + ("\n" if tag in _LINES else ""))


def table(caption: str, titles: Sequence[object], rows: Sequence[Sequence[object]]) -> Markup:
    """A table in a box of its own that scrolls where it is too wide; the first cell of a row is its title."""
    head = element("tr", *(element("th", title, scope="col") for title in titles))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
        for row in rows
    ]
    inside = (
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
    )
    # A box that scrolls must be reachable without a mouse, and then needs a name.
    return element(
        "div", element("table", *inside), class_="wide", role="region", tabindex=0, aria_label=caption
    )


def image(picture: Image, alt: str, **attributes: object) -> Markup:
    """The picture inside the page, as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return element("img", src=f"data:image/png;base64,{data}", alt=alt, **attributes)
