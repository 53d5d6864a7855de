"""One Ray head for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.head import Head


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head whose interpreter has no raylaunch: jobs bring it along in their working directory."""
    head = Head()
    head.start()
    yield head
    head.stop()
    assert head.processes() == []
