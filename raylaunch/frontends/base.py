"""What an engine asks of its frontend. It lives as long as the engine, while groups of ranks come and go."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

from raylaunch.errors import LaunchError, RaylaunchError, RequestError
from raylaunch.frontends.requests import Chunk
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.protocol import RoundName
from raylaunch.report import Span
from raylaunch.resolved import ResolvedLaunch
from raylaunch.wire import SglangSockets

Prompt = str | Sequence[int]
Image = str | bytes | PathLike[str] | Any
"""A path, a URL, a data URI, the file's bytes, or an image of Pillow."""
Listener = Callable[[Chunk | RaylaunchError], object]
"""Called with each chunk of a request, or with the error that ends it, on a thread of the frontend."""


@dataclass(frozen=True)
class Prepared:
    """A request that was checked and not started.

    Attributes:
        ids: the prompt as token ids; empty where ``text`` goes to the ranks' side as it is.
        text: the prompt of a request with images, whose tokens are known only when the images were looked at.
        images: what the prompt's placeholders stand for.
    """

    ids: list[int]
    params: SamplingParams
    text: str | None = None
    images: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Meeting:
    """Where the driver and rank 0 are.

    Attributes:
        same_node: they share a node.
        address: by which other nodes reach the driver's.
        may_move: another rank 0 may be on another node: the cluster has more of them.
    """

    same_node: bool
    address: str
    may_move: bool = False


class Running(Protocol):
    """A request between its submission and its last chunk."""

    @property
    def request_id(self) -> str: ...

    @property
    def prompt_tokens(self) -> int:
        """Length of its prompt; of one with images known when its first chunk is there."""


class TakesRequests(Protocol):
    """What an engine asks of whatever takes its requests. All methods may be called from any thread.

    Attributes:
        tokenizer: the model's, or None if it has none or is not loaded yet.
        continued: how many requests have gone on in another group than the one that was lost, each time counted.
        room: how many requests may run and wait; None for any number.
    """

    @property
    def continued(self) -> int: ...

    @property
    def room(self) -> int | None: ...

    @property
    def tokenizer(self) -> Any: ...

    def prepare(self, prompt: Prompt, params: SamplingParams, images: Sequence[Image] = ()) -> Prepared:
        """Checks a request. Raises :class:`RequestError`."""

    def submit(self, prepared: Prepared, listener: Listener, request_id: str) -> Running:
        """Starts a request.

        Raises:
            RequestError: the id is in use, or too many requests run.
            RequestFailed: there are no ranks, and none are waited for.
        """

    def forget(self, request: Running) -> None:
        """The caller has left: the request ends wherever it is, without another word."""

    def abort(self, request_id: str) -> bool:
        """Ends a request: its last chunk says ``abort``. Returns whether it was running."""


class Frontend(TakesRequests, Protocol):
    """Takes requests to rank 0 of one group.

    Attributes:
        spans: what it has done beside a launch.
    """

    spans: list[Span]

    def begin(self, resolved: ResolvedLaunch) -> None:
        """Starts what needs no ranks, beside their own start. Returns at once."""

    def meet(self, where: Meeting) -> SglangSockets | None:
        """The ranks of a group have their places. Returns what they must know to meet this frontend; None if rank 0
        says at its last gate where it is to be met. Raises :class:`LaunchError` if they cannot."""

    def attach(self, offer: Any) -> None:
        """``offer`` is what rank 0 hands out at ATTACH, where all ranks wait until this returns.

        Raises:
            ConfigError, LaunchError: nothing can be made of it.
        """

    def raise_if_failed(self) -> None:
        """Raises :meth:`failure`, or what :meth:`begin` has failed with: :class:`ConfigError`, :class:`LaunchError`."""

    def up(self, offer: Any, resolved: ResolvedLaunch) -> None:
        """Ranks stand ready; ``offer`` is what rank 0 handed out at its last gate, ``resolved`` has what they settled.
        Returns when requests can be sent.

        Raises:
            ConfigError: what was begun has failed.
            LaunchError: the ranks do not answer.
        """

    def down(self, error: LaunchError, rebuilding: bool = False) -> None:
        """The ranks are gone: every request that runs ends at once in a :class:`RequestFailed` with the headline.

        Args:
            rebuilding: others may take their place. Requests that can go on there wait for :meth:`up`, or for
                ``recovery.give_up_s`` to pass, as the configuration says; so do those that are submitted meanwhile.
        """

    def trouble(self) -> str:
        """Why requests cannot be answered although the ranks are well, in one line; "" if they can."""

    def failure(self) -> LaunchError | None:
        """Why requests can never be answered again, whatever the ranks do; None if they can."""

    def busy(self) -> bool:
        """Whether requests run, whichever way they came."""

    def verify(self, name: RoundName, shape: int) -> bool:
        """Has the ranks verify a shape in step as soon as they are idle: each comes to LATER. Returns at once, and
        whether there are ranks to do so."""

    def __len__(self) -> int:
        """How many requests run."""

    def close(self) -> None:
        """Gives back what :meth:`begin` made. May be called at any time, more than once."""


def ids_of(prompt: Prompt, tokenizer: Any, vocab_size: int) -> list[int]:
    """A prompt as token ids.

    Args:
        tokenizer: the model's, or None if it has none.
        vocab_size: ids are below it.
    Raises:
        RequestError: text cannot be turned into ids, there are none, or one is not the model's.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise RequestError("this model has no tokenizer: give the prompt as token ids")
        prompt = tokenizer(prompt)["input_ids"]
    return _checked(prompt, vocab_size)


def _checked(ids: Iterable[Any], vocab_size: int) -> list[int]:
    try:
        tokens = None if isinstance(ids, bytes | bytearray) else list(ids)
    except TypeError:
        tokens = None
    if tokens is None:
        raise RequestError(f"the prompt is {type(ids).__name__}: it must be text or token ids")
    found = []
    for position, token in enumerate(tokens):
        try:
            is_flag = isinstance(token, bool) or str(getattr(token, "dtype", "")).endswith("bool")
            number = -1 if is_flag else operator.index(token)  # an array's elements too
        except TypeError:
            number = -1
        if not 0 <= number < vocab_size:
            text = f"token {position} of the prompt is {token!r}: token ids are integers from 0 to {vocab_size - 1}"
            raise RequestError(text)
        found.append(number)
    if not found:
        raise RequestError("the prompt is empty: it needs at least one token")
    return found
