"""Pages for users, and the code on them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

from tests.head import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "examples/README.md")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: from the repository's root.
        line: where it begins.
        language: such as ``sh``, which those are that are only indented.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def key(self) -> str:
        """Its first line that says what it is about."""
        lines = [line.strip() for line in self.text.splitlines()]
        return next(line for line in lines if line and not line.startswith(("#", "import ", "from ")))


def pages() -> list[str]:
    """All of them, from the repository's root."""
    return [*PAGES, *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md"))]


@functools.cache
def blocks() -> tuple[Block, ...]:
    """Every block of every page."""
    return tuple(block for page in pages() for block in _blocks(page))


def spans() -> Iterator[tuple[str, str]]:
    """Code within a line: the page, and the code."""
    for page in pages():
        for token in MarkdownIt().enable("table").parse(_text(page)):
            yield from ((page, one.content) for one in token.children or () if one.type == "code_inline")


def _blocks(page: str) -> Iterator[Block]:
    for token in MarkdownIt().parse(_text(page)):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            language = token.info.strip() if token.type == "fence" else "sh"
            yield Block(page, token.map[0] + 1, language, token.content)


def _text(page: str) -> str:
    return Path(ROOT / page).read_text(encoding="utf-8")
