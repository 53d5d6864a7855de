"""``raylaunch serve`` as the process it is: where it listens, how it ends, what it says."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest
from pydantic import SecretStr

from raylaunch.config import LaunchConfig, ServeConfig
from raylaunch.errors import ConfigError
from raylaunch.serve.run import bind, exposed, require_key_for_code, sockets_of, url_of
from tests.busy import patient
from tests.cli.runner import command, finish, run
from tests.serve.conftest import events_of

QUICK = ["--no-report", "--set", "capture.prefill_tokens=[8]", "--set", "capture.decode_batch_sizes=[2]"]
KEY = "sk-very-secret"
WITH_KEY = {"authorization": f"Bearer {KEY}"}


# ---- the address


def test_a_taken_port_is_refused_before_the_launch():
    with bind(ServeConfig(port=0)) as first:
        port = first.getsockname()[1]
        first.listen()
        began = time.monotonic()
        ended = finish(command("serve", "--port", str(port)))
        assert (ended.code, ended.stdout) == (2, "")
        assert ended.stderr == f"ConfigError serve.port = {port}: is taken by another process on 127.0.0.1\n"
        assert time.monotonic() - began < patient(30)


def test_a_port_is_taken_even_before_its_server_listens():
    with bind(ServeConfig(port=0)) as first, pytest.raises(ConfigError, match=r"serve\.port.*taken"):
        bind(ServeConfig(port=first.getsockname()[1]))


def test_clients_run_no_code_where_anybody_is_one():
    key = "engine.sglang.args.enable_custom_logit_processor"
    asked = LaunchConfig.default(["engine.kind=sglang", f"{key}=true"])
    everywhere, here = ServeConfig(host="0.0.0.0", port=0), ServeConfig(port=0)
    with bind(everywhere) as open_to_all, bind(here) as local:
        with pytest.raises(ConfigError, match=rf"{key}.*: lets clients run code .*: set serve\.api_key"):
            require_key_for_code(asked, exposed=exposed(everywhere, open_to_all))
        with_key = everywhere.model_copy(update={"api_key": SecretStr(KEY)})
        require_key_for_code(asked, exposed=exposed(with_key, open_to_all))
        require_key_for_code(asked, exposed=exposed(here, local))
        require_key_for_code(LaunchConfig.default(["engine.kind=sglang"]), exposed=exposed(everywhere, open_to_all))


def test_a_port_that_closed_connections_still_hold_is_free():
    with bind(ServeConfig(port=0)) as first:
        port = first.getsockname()[1]
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server does before it listens
        first.listen()
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = first.accept()
            accepted.close()  # the server's side closes first, and waits
            assert client.recv(1) == b""
    with bind(ServeConfig(port=port)), pytest.raises(ConfigError, match="taken"):
        bind(ServeConfig(port=port))


@pytest.mark.parametrize("host", ["192.0.2.77", "no.such.host.invalid", "", "a" * 300])
def test_wrong_hosts(host):
    with pytest.raises(ConfigError, match=r"serve\.host"):
        bind(ServeConfig(host=host, port=0)).close()


def listens(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex((address, port)) == 0


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")


@ipv6
@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("localhost", ["127.0.0.1", "::1"]),
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("[::1]", ["::1"]),
        ("0.0.0.0", ["0.0.0.0"]),
        ("::", ["::"]),
    ],
)
def test_a_name_is_all_of_its_addresses(host, found):
    with bind(ServeConfig(host=host, port=0)) as first:
        sockets = sockets_of(first)
        assert [one.getsockname()[0] for one in sockets] == found
        assert len({one.getsockname()[1] for one in sockets}) == 1
        port = first.getsockname()[1]
        for one in sockets:
            one.listen()
        assert listens("127.0.0.1", port) is (host not in ("::1", "[::1]"))
        assert listens("::1", port) is (host in ("localhost", "::1", "[::1]", "::"))
        assert exposed(ServeConfig(), first) is (host in ("0.0.0.0", "::"))
    assert not listens("127.0.0.1", port)
    assert not listens("::1", port)


@ipv6
def test_one_of_a_names_addresses_is_taken():
    with bind(ServeConfig(host="::1", port=0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"serve\.port = {port}: is taken by another process on localhost \(::1\)"
        ):
            bind(ServeConfig(host="localhost", port=port))
    with bind(ServeConfig(host="localhost", port=port)):
        pass


def test_an_address_that_this_machine_does_not_have_is_left_out(monkeypatch):
    found = [(socket.AF_INET, "192.0.2.77"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "2001:db8::77")]
    monkeypatch.setattr("raylaunch.serve.run.addresses_of", lambda host: found)
    with bind(ServeConfig(host="a.name", port=0)) as first:
        assert [one.getsockname()[0] for one in sockets_of(first)] == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["http://127.0.0.1", "127.0.0.1:30000", "[::1]:30000", "local host"])
def test_a_host_is_a_name_or_address_alone(host):
    with pytest.raises(ConfigError, match=r"serve\.host .*give a name or an address alone, without scheme or port"):
        bind(ServeConfig(host=host, port=0))


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [("127.0.0.1", None, False), ("localhost", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "k", False)],
)
def test_who_can_reach_it(host, key, warned):
    settings = ServeConfig(host=host, port=0, api_key=key)  # type: ignore[arg-type]
    with bind(settings) as listener:
        assert exposed(settings, listener) is warned
        assert url_of(listener).startswith("http://")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port = 70000"),
        (["--api-key", ""], "--api-key = '': is empty"),
        (["--set", "serve.prot=1"], "did you mean 'port'?"),
    ],
)
def test_wrong_options(arguments, message):
    ended = run("serve", *arguments)
    assert ended.code == 2
    assert message in ended.stderr


# ---- its end


@contextmanager
def serving(*arguments: str) -> Iterator[tuple]:
    """A process that serves on any port, its address, and the lines that it has printed to standard error."""
    process = command("serve", "--port", "0", *QUICK, *arguments)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
    reader.start()
    try:
        end = time.monotonic() + 100
        while not (said := [line for line in lines if " at http://" in line]):
            assert process.poll() is None, lines
            assert time.monotonic() < end, lines
            time.sleep(0.05)
        yield process, said[0].split()[-1], lines
        process.wait(60)
        reader.join()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def ranks_of(process) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.name().startswith("ray::Rank")]


def refuses(url: str) -> bool:
    """Whether the server takes no new connections within two seconds."""
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/health")
        except httpx.ConnectError:
            return True
        time.sleep(0.02)
    return False


def test_a_stopped_server_lets_running_requests_end():
    with serving("--api-key", KEY) as (process, url, lines):
        ranks = ranks_of(process)
        assert len(ranks) == 2
        body = {"text": "1+1=", "stream": True, "sampling_params": {"max_new_tokens": 300, "ignore_eos": True}}
        assert httpx.post(f"{url}/generate", json=body).status_code == 401
        with httpx.stream("POST", f"{url}/generate", json=body, headers=WITH_KEY, timeout=60) as stream:
            pieces = stream.iter_text()
            text = next(pieces)
            process.send_signal(signal.SIGTERM)
            text += next(pieces)
            assert refuses(url)
            text += "".join(pieces)
        assert events_of(text)[-1]["meta_info"]["completion_tokens"] == 300
        assert process.wait(30) == 0
    assert "SIGTERM: no new requests" in lines[-1]
    assert KEY not in "".join(lines) + process.stdout.read()
    psutil.wait_procs(ranks, timeout=5)
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.slow
def test_requests_that_outlast_the_drain_are_ended():
    with serving("--set", "serve.drain=1") as (process, url, lines):
        body = {"text": "1+1=", "stream": True, "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=60) as stream:
            next(stream.iter_text())
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            assert process.wait(30) == 0
            assert time.monotonic() - began < patient(15)
    assert "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_a_lost_group_ends_the_server():
    """Requests are told at once that a rank is lost; the last line says why: ``ray job submit`` shows a failed job."""
    with serving("--set", "recovery.rebuilds=0") as (process, url, lines):
        body = {"text": "1+1=", "stream": True, "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=60) as stream:
            pieces = stream.iter_text()
            text = next(pieces)
            ranks_of(process)[1].kill()
            began = time.monotonic()
            text += "".join(pieces)
        print(f"the request ended {time.monotonic() - began:.2f} s after the kill")
        error = events_of(text)[-1]["error"]
        assert error["code"] == "engine_unavailable"
        assert process.wait(60) == 1
    assert re.search(r"LaunchError F07 \[SERVE\] rank \d died: killed by SIGKILL", error["message"])
    assert re.match(r"LaunchError F07 \[SERVE\] rank \d died: killed by SIGKILL", lines[-1])


@pytest.mark.slow
@pytest.mark.parametrize("who", ["its process group", "every process"])
def test_a_service_stopped_as_a_whole_ends_well(who):
    """As a terminal or systemd does it: Ray's own processes, and with systemd the ranks, get the same signal."""
    with serving() as (process, _, lines):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        servers = [one for one in family if os.getpgid(one.pid) == os.getpgid(process.pid) or who == "every process"]
        assert {"raylet", "gcs_server"} <= {one.name() for one in servers}
        began = time.monotonic()
        for one in servers:
            one.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - began < patient(5)
    assert "SIGTERM: no new requests" in lines[-1]
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == []
