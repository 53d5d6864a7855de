"""Serves an engine until it is told to stop, or until its group is lost for good."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from raylaunch.engine.health import Condition
from raylaunch.engine.replicas import replicas_of
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.startup.signals import answered_by

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from raylaunch.config import LaunchConfig, ServeConfig
    from raylaunch.engine import EngineBase
    from raylaunch.sglang.loop import Loop

WATCH_S = 0.2
EXPLAIN_S = 60.0
LAST_ANSWERS_S = 2.0  # for answers that only say that the group is lost
BACKLOG = 1024
PORTS_TRIED = 8
RUNS_CODE = "enable_custom_logit_processor"
"""SGLang's argument with which its ranks unpickle and run what clients send."""

log = logging.getLogger(__name__)


class ListeningSocket(socket.socket):
    """A bound socket. A host's name may stand for several addresses: ``others`` are bound to the rest, at its port."""

    others: tuple[socket.socket, ...] = ()

    def everything(self) -> list[socket.socket]:
        """It and the others."""
        return [self, *self.others]

    def close(self) -> None:
        for other in self.others:
            other.close()
        super().close()


def bind(settings: ServeConfig) -> ListeningSocket:
    """Takes the address before anything is launched, all of them where the host is a name such as ``localhost``. Nobody
    can connect until :func:`serve` listens.

    Raises:
        ConfigError: it is taken, not this machine's, or not allowed.
    """
    addresses = addresses_of(settings.host)
    for tries_left in range(PORTS_TRIED - 1, -1, -1):
        first, rest = _bind_first(settings, addresses)
        try:
            first.others = _bind_others(settings, rest, first.getsockname()[1])
        except ConfigError:
            first.close()
            if settings.port or not tries_left:  # port 0 is another one each time, and may be taken at an address
                raise
        else:
            return first
    raise AssertionError("unreachable")


def addresses_of(host: str) -> list[tuple[int, str]]:
    """Family and address of all that a host's name stands for, IPv4 first. Raises :class:`ConfigError`."""
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        expected = f"is no address of this machine: {error}; give a name or an address alone, without scheme or port"
        raise ConfigError("serve.host", host, expected) from None
    addresses = {(int(family), f"{at[0]}%{at[3]}" if len(at) > 3 and at[3] else str(at[0])) for family, *_, at in found}
    if name == "localhost":  # not every hosts file says so of both
        addresses.add((int(socket.AF_INET6), "::1"))
    return sorted(addresses, key=lambda one: (one[0] != socket.AF_INET, one))


def _bind_first(
    settings: ServeConfig, addresses: list[tuple[int, str]]
) -> tuple[ListeningSocket, list[tuple[int, str]]]:
    """The first address that this machine has, and those behind it."""
    for index, (family, address) in enumerate(addresses):
        try:
            return _bind_one(settings, family, address, settings.port), addresses[index + 1 :]
        except NotHere as error:
            if index == len(addresses) - 1:
                raise ConfigError("serve.host", settings.host, f"cannot be listened on: {error}") from None
    raise AssertionError("a name stands for one address at least")


def _bind_others(settings: ServeConfig, addresses: list[tuple[int, str]], port: int) -> tuple[ListeningSocket, ...]:
    bound: list[ListeningSocket] = []
    try:
        for family, address in addresses:
            with contextlib.suppress(NotHere):  # such as IPv6 where it is off
                bound.append(_bind_one(settings, family, address, port))
    except ConfigError:
        for one in bound:
            one.close()
        raise
    return tuple(bound)


class NotHere(OSError):
    """An address that this machine does not have."""


def _bind_one(settings: ServeConfig, family: int, address: str, port: int) -> ListeningSocket:
    # Sockets that reuse addresses may share one until the first listens, which here is after a launch. So this one
    # reuses only to bind, and only if it must: closed connections of an earlier server still hold the address.
    for reuse in (0, 1):
        try:
            one = ListeningSocket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise NotHere(error.strerror or str(error)) from None
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            one.bind(socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4])
        except OSError as error:
            one.close()
            if error.errno in (errno.EACCES, errno.EPERM):
                expected = f"cannot be listened on: {error.strerror or error}"
                raise ConfigError("serve.port", settings.port, expected) from None
            if error.errno != errno.EADDRINUSE:
                raise NotHere(error.strerror or str(error)) from None
        else:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            return one
    taken = f"is taken by another process on {settings.host}"
    raise ConfigError("serve.port", port, taken if address == settings.host else f"{taken} ({address})")


def url_of(listener: socket.socket) -> str:
    """Where clients find a server, such as ``http://127.0.0.1:30000``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def sockets_of(listener: socket.socket) -> list[socket.socket]:
    """All sockets of a listener, which may be one of the caller's own."""
    return listener.everything() if isinstance(listener, ListeningSocket) else [listener]


def exposed(settings: ServeConfig, listener: socket.socket) -> bool:
    """Whether other machines can reach the server without a key."""
    hosts = [one.getsockname()[0] for one in sockets_of(listener)]
    return settings.api_key is None and not all(ipaddress.ip_address(host).is_loopback for host in hosts)


def require_key_for_code(config: LaunchConfig, *, exposed: bool) -> None:
    """Raises :class:`ConfigError` if other machines could have their code run on the ranks without a key.

    Args:
        exposed: they can reach the server without one.
    """
    if config.engine.kind == "sglang" and config.engine.sglang.args.get(RUNS_CODE) and exposed:
        expected = "lets clients run code of theirs on the ranks: set serve.api_key, or serve.host=127.0.0.1"
        raise ConfigError(f"engine.sglang.args.{RUNS_CODE}", True, expected)


def serve(
    engine: EngineBase,
    settings: ServeConfig,
    listener: socket.socket | None = None,
    *,
    say: Callable[[str], object] = log.info,
) -> None:
    """Answers HTTP requests for a started engine. Returns after SIGINT, SIGTERM, SIGQUIT or SIGHUP, when
    running requests have ended or ``settings.drain`` seconds are over; a second signal ends them at once. The engine is
    left running.

    Args:
        listener: a bound socket, from :func:`bind`; without one the configured address is bound now.
        say: told in words where the server listens, and when it stops.
    Raises:
        ConfigError: the address cannot be used, the chat template cannot be read, or anybody could run code.
        LaunchError: the group was lost, and no restarts are left.
    """
    listener = bind(settings) if listener is None else listener
    require_key_for_code(engine.config, exposed=exposed(settings, listener))
    app, loop = application(engine, settings, exposed=exposed(settings, listener))
    for one in sockets_of(listener):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that it leaves closed do not block
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None if engine.config.log.format == "json" else LOGGING_CONFIG,
        log_level="warning",
        lifespan="off" if loop is None else "on",
        timeout_graceful_shutdown=max(1, round(settings.drain)),
        server_header=False,
        backlog=BACKLOG,
    )
    server = _Server(config, say)
    if exposed(settings, listener):
        say("WARNING other machines can reach this server and it asks for no key: set --api-key")
    try:
        if loop is None:
            asyncio.run(server.run_until_stopped(listener, engine))
        else:
            with server.signals_from_main_thread(loop):
                loop.submit(server.run_until_stopped(listener, engine)).result()
    finally:
        listener.close()
    if server.lost is not None:
        raise server.lost


def application(engine: EngineBase, settings: ServeConfig, *, exposed: bool) -> tuple[ASGIApp, Loop | None]:
    """The engine's HTTP application, and the loop that it must run on; None for any.

    Raises:
        ConfigError: the chat template cannot be read.
    """
    if engine.config.engine.kind == "sglang":
        from raylaunch.serve.sglang import app
        from raylaunch.sglang.frontend import SglangFrontend

        frontend = replicas_of(engine)[0].frontend
        assert isinstance(frontend, SglangFrontend)
        return app.build_app(engine, settings, exposed=exposed), frontend.runs
    from raylaunch.serve.reference.app import build_app

    return build_app(engine, settings, title=f"raylaunch {engine.config.name}"), None


class _Server(uvicorn.Server):
    """uvicorn's server, with this package's signals and an eye on the group."""

    def __init__(self, config: uvicorn.Config, say: Callable[[str], object]) -> None:
        super().__init__(config)
        self.say = say
        self.lost: LaunchError | None = None

    async def run_until_stopped(self, listener: socket.socket, engine: EngineBase) -> None:
        watch = asyncio.create_task(self._watch(engine, listener))
        try:
            await self.serve(sockets=sockets_of(listener))
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again when everything has ended well."""
        loop = asyncio.get_running_loop()

        def handle(number: int, _: object) -> None:  # no handler of the loop's: between two of its own is a gap
            loop.call_soon_threadsafe(self._stop, signal.Signals(number))

        with answered_by(handle):
            yield

    @contextlib.contextmanager
    def signals_from_main_thread(self, loop: Loop) -> Iterator[None]:
        """The same where the server runs on another thread: Python gives signals to the main thread only."""

        def handle(number: int, _: object) -> None:
            loop.soon(self._stop, signal.Signals(number))

        with answered_by(handle):
            yield

    def _stop(self, number: signal.Signals) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        seconds = self.config.timeout_graceful_shutdown
        self.say(f"{number.name}: no new requests; those that run may end, for at most {seconds} s")

    async def _watch(self, engine: EngineBase, listener: socket.socket) -> None:
        while not self.started:
            if self.should_exit:  # the application's own start has failed, and uvicorn has logged why
                self.lost = LaunchError("the HTTP application could not be started")
                return
            await asyncio.sleep(0.01)
        self.say(f"serving {engine.model_name} at {url_of(listener)}")
        before = engine.last_error  # of a loss that was made good
        while (condition := engine.health(ask_ranks=False).condition) is not Condition.FAILED:
            if condition is Condition.READY:
                before = engine.last_error
            await asyncio.sleep(WATCH_S)
        if self.should_exit:
            return  # stopped as a whole service: Ray's processes and the ranks got the same signal
        end = time.monotonic() + EXPLAIN_S
        while engine.last_error is before and time.monotonic() < end:
            await asyncio.sleep(WATCH_S)  # the evidence is being collected
        self.lost = engine.last_error or LaunchError("the group is lost")
        self.config.timeout_graceful_shutdown = round(LAST_ANSWERS_S)
        self.should_exit = True
