"""Tells the error of a rank that has lost its peers from an error of its own: only where it was raised can."""

from __future__ import annotations

import re
import traceback

from raylaunch.errors import CollectiveAborted, RankFault

LOST = re.compile(
    r"Connection (closed|reset) by peer|gloo|NCCL|Socket Timeout|Broken pipe"
    r"|Timed out waiting .* for (send|recv) operation"
)
COLLECTIVE_CODE = re.compile(r"(^|/)(torch/distributed|raylaunch_actors/communicator|sglang/srt/distributed)/")
COLLECTIVE_TYPES = ("DistBackendError", "DistNetworkError")
GLOO_SAYS = re.compile(r"^\[\S*gloo/\S+\.cc:\d+\]")  # the work of a collective fails wherever it is waited for


def lost_its_peers(error: BaseException) -> bool:
    """Whether an error only says that a peer did not answer. Engines wrap errors in others: the chain is followed.

    What a rank finds out itself, a RankFault, is its own, whatever its text quotes.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, RankFault):
            return isinstance(link, CollectiveAborted)
        if LOST.search(str(link)) and _from_collective(link):
            return True
        if type(link).__name__ in COLLECTIVE_TYPES:
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False


def _from_collective(error: BaseException) -> bool:
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(GLOO_SAYS.search(str(error))) or any(COLLECTIVE_CODE.search(file) for file in files)
