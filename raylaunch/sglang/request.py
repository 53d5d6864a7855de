"""One request on its way through SGLang's tokenizer manager."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from raylaunch.errors import RaylaunchError, RequestError, RequestFailed
from raylaunch.frontends.base import Listener, Prepared
from raylaunch.frontends.requests import Chunk
from raylaunch.sglang.manager import TokenizerSide
from raylaunch.sglang.mapping import StreamedAnswer


@dataclass
class SglangRequest:
    """A request between its submission and its last chunk.

    Attributes:
        task: that runs it on the loop; None before.
        given: SGLang's object for it; None before.
        finished: whether its listener has heard the last of it, or wants to hear no more.
    """

    request_id: str
    prepared: Prepared
    answer: StreamedAnswer
    listener: Listener
    task: asyncio.Task[None] | None = None
    given: Any = None
    finished: bool = False

    @property
    def rid(self) -> str:
        """Its id to SGLang, whose ranks (0.5.17, 0.5.23) end all requests whose ids begin with one that is aborted.
        With their lengths before them none begins with another."""
        return f"/{len(self.request_id)}/{self.request_id}"

    @property
    def sent(self) -> bool:
        """Whether the ranks were sent it."""
        return getattr(self.given, "sent", False)

    @property
    def prompt_tokens(self) -> int:
        """As SGLang counts, images included."""
        return self.answer.prompt_tokens or len(self.prepared.ids)

    async def run(self, side: TokenizerSide) -> Chunk | RaylaunchError:
        """Has it answered, on the loop of ``side``. Tells the listener all but the end, which is returned."""
        try:
            self.given = side.input_of(self.rid, self.prepared)
            async for output in side.stream(self.given):
                item = self.answer.receive(output)
                if isinstance(item, RaylaunchError) or (item is not None and item.finish_reason is not None):
                    return item
                if item is not None and not self.finished:
                    self.listener(item)
        except ValueError as error:  # what SGLang's validation refuses
            aborted = type(error).__name__ == "RequestAbortedError"
            return Chunk(self.request_id, "", (), "abort") if aborted else RequestError(str(error))
        except Exception as error:
            return RequestFailed(f"request {self.request_id}: {type(error).__name__}: {error}")
        return RequestFailed(f"request {self.request_id} ended without a reason")

    def cancel(self) -> None:
        """Ends it, on the loop, whatever it has to say."""
        if self.task is not None:
            self.task.cancel()
