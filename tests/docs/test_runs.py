"""Pages whose commands start ranks, typed from top to bottom."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from tests.docs.pages import Block, blocks
from tests.docs.reader import ISOLATED, Reader
from tests.docs.ways import WAYS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TYPED = [block for block in blocks() if block.key in WAYS and WAYS[block.key].kind in ("now", "launch", "serve")]
PAGES = sorted({block.page for block in TYPED if WAYS[block.key].kind != "now"})
ALONE = [block for block in blocks() if block.key in WAYS and WAYS[block.key].kind == "isolated"]


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, reader: Reader) -> None:
    with contextlib.ExitStack() as server:
        for block in (one for one in TYPED if one.page == page):
            if WAYS[block.key].kind == "serve":
                server.close()  # the one before
                server.enter_context(reader.serving(block))
            else:
                assert WAYS[block.key].says in reader.run(block), block.text


@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.page)
def test_what_ends_all_of_ray(block: Block, reader: Reader) -> None:
    if subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs namespaces of processes")
    assert WAYS[block.key].says in reader.run(block, before=ISOLATED)
