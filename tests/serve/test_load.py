"""Many clients at once against real ranks: no token is lost, mixed up or doubled."""

from __future__ import annotations

import asyncio

import pytest

from tests.serve.conftest import Live
from tests.serve.load import load, middle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CLIENTS = 64
SECONDS = 120.0


def test_sixty_four_streaming_clients(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    tally = asyncio.run(load(live.url, CLIENTS, SECONDS))
    with capsys.disabled():
        print(
            f"\n{CLIENTS} clients, {SECONDS:g} s: {tally.answered} answers, {len(tally.wrong)} wrong, "
            f"{tally.tokens / SECONDS:.0f} tokens/s, first token p50 {middle(tally.first) * 1e3:.0f} ms "
            f"p99 {middle(tally.first, 0.99) * 1e3:.0f} ms, gap p50 {middle(tally.gaps) * 1e3:.1f} ms "
            f"p99 {middle(tally.gaps, 0.99) * 1e3:.0f} ms"
        )
    assert tally.wrong == []
    assert tally.answered > 1000
    assert live.running() == 0
