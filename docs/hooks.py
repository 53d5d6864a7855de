"""What mkdocs makes of the files: pages whose text lies outside of this folder, and links to what does.

Links are those of the repository, so that they work there as well: on the site one that leaves ``docs/`` leads to the
repository, or to the page that is made of its file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SOURCE = "https://github.com/raylaunch/raylaunch/blob/main/"
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)[^)#\s]+")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made of other files."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Makes links of the repository those of the site."""
    place = page.file.src_uri
    folder = "" if place in PAGES.values() else posixpath.join("docs", posixpath.dirname(place))

    def on_site(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0]))  # from the repository's root
        target = posixpath.join("docs", PAGES[target]) if target in PAGES else target
        if (ROOT / target / "README.md").is_file():
            target += "/README.md"
        if not target.startswith("docs/"):
            return SOURCE + target
        return posixpath.relpath(target, posixpath.join("docs", posixpath.dirname(place)))

    return LINK.sub(on_site, markdown)
