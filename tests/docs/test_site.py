"""The site is built without a warning, and its pages have what they promise."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import yaml
from starlette.testclient import TestClient

import raylaunch
from raylaunch.serve.reference.app import build_app
from tests.head import ROOT

DOCS = ROOT / "docs"
FAULT = r"F\d\d"


def test_it_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, re.findall("left as is|not included in the", done.stderr)) == (0, []), done.stderr
    page = (tmp_path / "site" / "python" / "index.html").read_text()
    assert [name for name in public() if f'id="raylaunch.{name}"' not in page] == []
    assert re.findall(":class:|<p>(?:Args|Raises):", page) == [], "a docstring is not read as it is meant"
    loaded = re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="((?:https?:)?//[^"]+)', page)
    assert loaded == [], "a reader's browser asks no other host"


def public() -> list[str]:
    return [name for name in raylaunch.__all__ if name != "__version__"]


def test_the_page_of_commands_is_what_they_say() -> None:
    commands_page = runpy.run_path(str(DOCS / "commands_page.py"))["commands_page"]
    assert (DOCS / "commands.md").read_text() == commands_page(), "python docs/commands_page.py > docs/commands.md"


def test_every_page_has_its_place() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"^\s*(?:# )?- [^:]*: (\S+\.md)$", text, re.MULTILINE))
    there = {str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md")}
    made = set(runpy.run_path(str(DOCS / "hooks.py"))["PAGES"].values())
    assert there | made <= listed
    assert yaml.safe_load(text)["nav"]


def test_every_fault_says_what_to_do() -> None:
    known = re.findall(rf"^\| ({FAULT}) \|", (DOCS / "faults.md").read_text(), re.MULTILINE)
    page = (DOCS / "troubleshooting.md").read_text()
    sections = {part[:3]: part for part in re.split(r"^## ", page, flags=re.MULTILINE) if re.match(rf"{FAULT}: ", part)}
    assert list(sections) == known
    for number, text in sections.items():
        assert f"{{#{number.lower()}}}" in text
        assert re.findall(r"^\* \*\*(\w+)\*\*", text, re.MULTILINE) == ["Seen", "Means", "Do"], number


def test_endpoints_on_the_page_exist() -> None:
    section = (DOCS / "serving.md").read_text().split("## Endpoints of the engine `reference`")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`/.*?) \|", section, re.MULTILINE)
    wanted = {path for row in rows for path in re.findall(r"`(/[\w/.]*)`", row)}
    engine = raylaunch.Engine(raylaunch.LaunchConfig.default())
    client = TestClient(build_app(engine, engine.config.serve))
    assert len(wanted) > 10
    assert [path for path in wanted if client.get(path).status_code == 404] == []
    assert client.get("/v1/nothing").status_code == 404
