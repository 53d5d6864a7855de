"""Errors that raylaunch raises, on the driver's side and on a rank's.

A :class:`LaunchError` is what a user sees; a :class:`RankFault` is what the code inside a rank raises when it
already knows which fault of the catalogue it has met. The driver turns the second into the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from raylaunch.values.masking import masked


class RaylaunchError(RuntimeError):
    """Base of every error that raylaunch raises on purpose."""


class ConfigError(RaylaunchError):
    """A configuration that cannot be launched: says which key, what its value is and what would be right.

    Attributes:
        key: dotted path of the setting, such as ``capture.prefill_tokens``.
        value: what was found there; of secrets, ``***``.
        expected: what would be right, as a phrase.
    """

    def __init__(self, key: str, value: object, expected: str, source: str = "") -> None:
        self.key, self.value, self.expected, self.source = key, masked(key, value), expected, source
        where = f"{source}: " if source else ""
        super().__init__(f"{where}{key} = {self.value!r}: {expected}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.key, self.value, self.expected, self.source)


class UnknownKey(ConfigError):
    """A key that no setting has, whatever its value."""


class RequestError(RaylaunchError, ValueError):
    """A request that the engine refuses before any rank sees it (too long, malformed, unknown parameter)."""


class EngineBusy(RequestError):
    """A request that is refused because too many run and wait already; it may be sent again later."""


class RequestFailed(RaylaunchError):
    """A request that was accepted and could not be finished, for example because a rank died meanwhile."""


class ReplicaLost(RequestFailed):
    """A request whose group of ranks was lost, while others that serve the same model may be ready."""


class RankFault(RaylaunchError):
    """An error raised inside a rank.

    Attributes:
        code: fault number such as ``"F01"``, or None where the catalogue has no row for it.
    """

    def __init__(self, code: str | None, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.code, self.message)


class CaptureError(RankFault):
    """An operation that cannot be part of a captured graph (it reads data back, or draws random numbers)."""


class CollectiveAborted(RankFault):
    """This rank left a collective because a peer aborted it or never arrived: a secondary failure, not a cause."""


@dataclass(frozen=True)
class RankEvidence:
    """What is known of one rank at the time of a failure.

    Attributes:
        rank: tensor-parallel rank.
        node: address of its node.
        pid: its process, 0 if it never started.
        device: such as ``cpu`` or ``gpu 1``.
        state: one phrase: what the rank was doing, or how it ended.
        traceback: the rank's own traceback, or "".
        stacks: Python stacks of its threads, or "".
        log_tail: last lines of its log, or "".
        log_file: where its whole log is, on its node.
        core_dump: core dump that its GPU has written, on its node, or "".
    """

    rank: int
    node: str = ""
    pid: int = 0
    device: str = ""
    state: str = ""
    traceback: str = ""
    stacks: str = ""
    log_tail: str = ""
    log_file: str = ""
    core_dump: str = ""


@dataclass(eq=False)  # compared and hashed by identity, as exceptions are
class LaunchError(RaylaunchError):
    """A launch or a running group that failed, with its cause and the evidence.

    Attributes:
        summary: one sentence: what went wrong.
        code: fault number of the catalogue (``"F05"``), or None.
        phase: name of the phase, such as ``CAPTURE``.
        round: ``prefill``, ``decode`` or None.
        shape: token count or batch size, or None.
        iteration: 1 or 2 inside CAPTURE, or None.
        rank: the rank that caused it, or None where no single rank did.
        ranks: evidence of every rank.
        teardown: what was given back, and in which time.
        retryable: whether a new attempt may help (a killed process), or cannot (a broken rule).
        followers: what failed because of it, in order: the attempts to launch again.
        given_up: why no further attempt was made although it is retryable, or "".
        replica: number of the group among several that serve the same model; None where there is one.
    """

    summary: str
    code: str | None = None
    phase: str = ""
    round: str | None = None
    shape: int | None = None
    iteration: int | None = None
    rank: int | None = None
    ranks: list[RankEvidence] = field(default_factory=list)
    teardown: str = ""
    retryable: bool = False
    followers: list[LaunchError] = field(default_factory=list)
    given_up: str = ""
    replica: int | None = None

    def __post_init__(self) -> None:
        super().__init__(self.summary)

    def where(self) -> str:
        """The place of the failure, such as ``CAPTURE prefill, 1152 tokens, iteration 2``."""
        place = " ".join(part for part in (self.phase, self.round or "") if part)
        if self.shape is not None:
            place += f", {self.shape} {'requests' if self.round == 'decode' else 'tokens'}"
        if self.iteration is not None:
            place += f", iteration {self.iteration}"
        if self.replica is not None:
            place = ", ".join(part for part in (place, f"replica {self.replica}") if part)
        return place

    def brief(self) -> str:
        """Code, place and first line of the summary; nothing of what followed."""
        where = f"[{self.where()}]" if self.where() else ""
        first = next(iter(self.summary.splitlines()), "")
        return " ".join(part for part in (self.code or "", where, first) if part)

    def headline(self) -> str:
        """The error in one line, what followed included; what a job prints last."""
        again = "the rebuild" if self.phase == "SERVE" else "another attempt"
        return f"LaunchError {in_order(self.brief(), [one.brief() for one in self.followers], again)}"

    def __str__(self) -> str:
        return "\n".join([self.headline(), *self._details()])

    def _details(self) -> list[str]:
        lines = self.summary.splitlines()[1:]
        for evidence in self.ranks:
            mark = "   <- cause" if evidence.rank == self.rank else ""
            node = f"node {evidence.node}" if evidence.node else ""
            pid = f"pid {evidence.pid}" if evidence.pid else ""
            place = "  ".join(part for part in (node, pid, evidence.device, evidence.state) if part)
            lines.append(f"  rank {evidence.rank}  {place}{mark}")
        for title, name in (("traceback", "traceback"), ("stacks", "stacks"), ("last log lines", "log_tail")):
            for evidence in self.ranks:
                text = getattr(evidence, name).strip()
                if text:
                    lines.append(f"  rank {evidence.rank}, {title}:")
                    lines.extend("    " + line for line in text.splitlines())
        for evidence in self.ranks:
            if evidence.core_dump:
                lines.append(f"  rank {evidence.rank}, core dump of its GPU; on its node, open it with")
                lines.append(f'    cuda-gdb -ex "target cudacore {evidence.core_dump}"')
        if self.teardown:
            lines.append(f"  {self.teardown}")
        if self.given_up:
            lines.append(f"  not launched again: {self.given_up}")
        logs = [evidence.log_file for evidence in self.ranks if evidence.log_file]
        if logs:
            lines.append("  the ranks' logs: " + ", ".join(logs))
        for number, follower in enumerate(self.followers, 1):
            if details := follower._details():
                lines.append(f"  attempt {number} after it: {follower.brief()}")
                lines.extend("  " + line for line in details)
        return lines

    def __reduce__(self) -> tuple[object, ...]:
        fields = (
            "summary",
            "code",
            "phase",
            "round",
            "shape",
            "iteration",
            "rank",
            "ranks",
            "teardown",
            "retryable",
            "followers",
            "given_up",
            "replica",
        )
        return type(self), tuple(getattr(self, name) for name in fields)


def in_order(first: str, followers: Sequence[str], again: str = "the rebuild") -> str:
    """What ended a service, in one line: its first cause, then what followed in its order, equal ones counted.

    Args:
        again: what the followers were failures of.
    """
    text = first
    for index, (follower, same) in enumerate(groupby(followers)):
        count = len(list(same))
        times = f" ({count} times)" if count > 1 else ""
        text += f"; {f'{again} then' if index == 0 else 'after that it'} failed{times}: {follower}"
    return text


def launch_error(error: BaseException, phase: str = "") -> LaunchError:
    """``error`` itself if it is a :class:`LaunchError`; else one that says what was raised, in ``phase``."""
    if isinstance(error, LaunchError):
        return error
    text = str(error) if isinstance(error, RaylaunchError) else f"{type(error).__name__}: {error}"
    return LaunchError(text, None, phase)


def one_line(error: BaseException) -> str:
    """An error's first line, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shut_down(phase: str) -> LaunchError:
    """A launch that its own user has ended, in ``phase``."""
    return LaunchError("the engine was shut down", None, phase)
