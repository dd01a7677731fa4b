"""A page as a browser sees it: elements with attributes, and the visible text of its sections."""

from html.parser import HTMLParser

_VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """elements: (tag, attributes) in order; text: of everything that is shown; rows: tables as lists of cells.

    Refuses HTML whose tags do not close in order, so that unescaped text cannot go unnoticed.
    """

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}  # heading -> text; "" before the first
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self._heading, self._title = "", ""
        self.feed(html)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        return " ".join(self.sections.values())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "h2":
            self._title = ""
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "h2":
            self._heading = self._title
            self.sections.setdefault(self._heading, "")

    def handle_data(self, data):
        if {"style", "script", "title"} & set(self._open):
            return
        if "h2" in self._open:
            self._title += data
        elif data.strip():
            kept = self.sections.get(self._heading, "")
            self.sections[self._heading] = f"{kept} {' '.join(data.split())}".strip()
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
