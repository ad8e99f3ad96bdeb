"""Reads a page as a browser would see it, with the standard library's parser."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

from PIL import Image

_EMPTY = {"img", "link", "meta"}


class Page(HTMLParser):
    """Tags with their attributes, images, headings, and the cells of each table by its caption."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append("")
        elif tag == "table":
            self.tables.append(("", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        inside = set(self.open)
        if "style" in inside:
            return
        self.text += data
        if inside & {"h1", "h2", "h3"}:
            self.headings[-1] += data
        elif "caption" in inside:
            caption, rows = self.tables[-1]
            self.tables[-1] = (caption + data, rows)
        elif inside & {"td", "th"}:
            self.tables[-1][1][-1][-1] += data

    def table(self, caption: str, number: int = 0) -> list[list[str]]:
        """The body of the table of that caption; the ``number``-th of them."""
        rows = [rows for title, rows in self.tables if title == caption][number]
        return [[cell.strip() for cell in row] for row in rows[1:]]

    def images(self) -> list[tuple[str, Image.Image]]:
        """Every image with its text for those who do not see it."""
        found = []
        for tag, attributes in self.tags:
            if tag == "img":
                source, alt = attributes["src"], attributes["alt"]
                assert source is not None
                assert alt
                kind, _, data = source.partition(",")
                assert kind == "data:image/png;base64"
                found.append((alt, Image.open(io.BytesIO(base64.b64decode(data, validate=True)))))
        return found
