"""docs/settings.md is what the sections say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from raylaunch.config import LaunchConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
settings_page = runpy.run_path(str(PAGE.with_name("settings_page.py")))["settings_page"]


def test_the_page_is_what_the_sections_say() -> None:
    assert PAGE.read_text() == settings_page(), "python docs/settings_page.py > docs/settings.md"


def test_every_setting_has_a_row_and_says_what_it_is() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| ([^|]+) \|$", settings_page(), re.MULTILINE))
    named = [key for key, text in rows.items() if len(text) > 5]
    assert len(named) == len(rows)
    flat = LaunchConfig.default().model_dump(by_alias=True)
    wanted = {f"{section}.{key}" for section, keys in flat.items() if isinstance(keys, dict) for key in keys}
    wanted -= {"engine.sglang", *(key for key in wanted if key.startswith("environment."))}
    assert wanted <= set(rows)
