"""SGLang's application in front of several groups: one answers a request, an operator's goes to each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextvars import ContextVar
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raylaunch.engine import EngineBase
from raylaunch.engine.health import Condition
from raylaunch.engine.routing import prompt_in
from raylaunch.serve.errors import ApiError

SESSIONS = ("/open_session", "/close_session")
NO_SESSIONS = "a session is kept by one group, and there are several (parallel.replicas): send the whole conversation"

_chosen: ContextVar[int] = ContextVar("raylaunch_replica", default=0)


class OfReplica:
    """What SGLang's application holds once and each replica has: that of the replica which the present request is at.

    Args:
        each: one for each replica, in order.
    """

    def __init__(self, each: Sequence[Any]) -> None:
        object.__setattr__(self, "_each", tuple(each))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_each")[_chosen.get()], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_each")[_chosen.get()], name, value)


class Dispatch:
    """Has each request answered by one replica.

    Args:
        engines, apps: of each replica; an application answers for its own.
        choose: number of the replica for one more request, by its prompt if that counts; the best there is, if none can
            take it.
        reads: paths of the requests whose prompt counts.
        of_operators: whether a request changes or profiles the server: that is done at each replica that is there.
    """

    def __init__(
        self,
        engines: Sequence[EngineBase],
        apps: Sequence[ASGIApp],
        choose: Callable[[str | Sequence[int]], int],
        of_operators: Callable[[Scope], bool],
        reads: Collection[str] = (),
    ) -> None:
        self.engines, self.apps, self.reads = engines, apps, reads
        self.choose, self.of_operators = choose, of_operators

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._dispatch(scope, receive, send)
        except ApiError as error:  # of a limit, met while the body was read
            await error.response()(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # of SGLang's application, which all have
            await self.apps[0](scope, receive, send)
        elif scope["path"] in SESSIONS:
            await ApiError(400, NO_SESSIONS, code="several_replicas").response()(scope, receive, send)
        elif self.of_operators(scope):
            await self._at_each(scope, receive, send)
        elif scope["path"] in self.reads:
            body = await _body(receive)
            prompt = prompt_in(b"".join(one.get("body", b"") for one in body))
            await self._at(self.choose(prompt), scope, _again(body, receive), send)
        else:
            await self._at(self.choose(""), scope, receive, send)

    async def _at(self, number: int, scope: Scope, receive: Receive, send: Send) -> None:
        token = _chosen.set(number)
        try:
            await self.apps[number](scope, receive, send)
        finally:
            _chosen.reset(token)

    async def _at_each(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer is the last one, or the first that says that it was not done."""
        conditions = [engine.health(ask_ranks=False).condition for engine in self.engines]
        there = [number for number, one in enumerate(conditions) if one is Condition.READY] or [self.choose("")]
        body = await _body(receive)
        for number in there:
            answer = list[Message]()

            async def keep(message: Message, answer: list[Message] = answer) -> None:
                answer.append(message)

            await self._at(number, dict(scope), _again(body, receive), keep)
            if answer[0]["status"] >= 400:
                break
        for message in answer:
            await send(message)


async def _body(receive: Receive) -> list[Message]:
    """All of a request, as it came."""
    body = [await receive()]
    while body[-1].get("more_body"):
        body.append(await receive())
    return body


def _again(body: Sequence[Message], receive: Receive) -> Receive:
    """Says what was received, and goes on."""
    left = list(body)

    async def again() -> Message:
        return left.pop(0) if left else await receive()

    return again
