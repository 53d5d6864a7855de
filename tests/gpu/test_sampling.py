"""What sampling takes of a GPU's memory, beside what is kept for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from raylaunch_actors.reference.cache_size import LOGIT_COPIES
from raylaunch_actors.reference.sampling import make_generator, sample

from raylaunch.wire import Sampling

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def memory_returns() -> Iterator[None]:
    """In place of the other GPU tests' check: this runs in this process, which keeps its CUDA context."""
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("rows", [32, 128])  # torch sorts few and many rows in different ways
def test_no_more_copies_of_the_logits_are_alive_than_memory_is_kept_for(rows: int) -> None:
    device = torch.device("cuda")
    params = [Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=row) for row in range(rows)]
    generators = [make_generator(one, device) for one in params]
    before = torch.cuda.memory_allocated()
    logits = torch.randn(rows, 151_936, device=device)
    torch.cuda.reset_peak_memory_stats()
    sample(logits, params, generators)
    assert torch.cuda.max_memory_allocated() - before < LOGIT_COPIES * logits.nbytes
