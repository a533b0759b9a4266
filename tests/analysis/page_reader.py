"""What a page holds, read back with the standard library's parser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Tags, visible text, table cells by caption, and the data of the figures."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.figures: dict[str, Any] = {}
        self._open: list[str] = []
        self._text: list[str] = []
        self._caption = ""
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self._open.append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "tr":
            self.tables[self._caption].append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"{tag} is not nested well"
        if tag == "caption":
            self.tables[self._caption.strip()] = []
            self._caption = self._caption.strip()

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            if self.tags[-1][1].get("id") == "figures":
                self.figures = json.loads(data)
            return
        if "style" in self._open:
            return
        self._text.append(data)
        if "caption" in self._open:
            self._caption += data
        elif "td" in self._open or "th" in self._open:
            self.tables[self._caption][-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")
