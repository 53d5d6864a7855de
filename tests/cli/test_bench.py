"""Measurements of requests: the parts that need no launch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raylaunch.benchmarks import decode, launch, prefill, variants
from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError, LaunchError
from raylaunch.report import LaunchReport
from raylaunch.resolved import ResolvedLaunch
from tests.cli.runner import run


def engine(**facts: Any) -> Any:
    """What refusals look at."""
    running = SimpleNamespace(max_running_requests=4)
    return SimpleNamespace(max_context=100, kv_tokens=200, config=SimpleNamespace(engine=running), **facts)


def test_variants_differ_in_what_they_name() -> None:
    made = variants.variants_of("eager, custom", LaunchConfig.default())
    assert [(name, one.config.capture.enabled) for name, one in made.items()] == [("eager", False), ("custom", True)]
    assert made["custom"].config.communicator.kind == "custom"
    on_gpus = LaunchConfig.default(["engine.device=cuda"])
    assert variants.variants_of("library", on_gpus)["library"].config.communicator.kind == "library"
    assert variants.variants_of("inductor", on_gpus)["inductor"].config.capture.compiler == "inductor"


@pytest.mark.parametrize("text", ["", "eager,eager", "eager,fast"])
def test_unknown_variants(text: str) -> None:
    with pytest.raises(ConfigError, match="must name some of eager, library, custom, inductor"):
        variants.variants_of(text, LaunchConfig.default())


def test_comparison_is_against_the_first_variant() -> None:
    results = {"eager": {128: 10.0, 256: 20.0}, "custom": {128: 5.0}}
    title, head, *rows, note = variants.comparison("prefill", "tokens", results, faster_is_less=True)[1:]
    assert (title, head.split()) == ("prefill", ["tokens", "eager", "custom", "custom/eager"])
    assert [row.split() for row in rows] == [["128", "10.00", "5.00", "2.00x"], ["256", "20.00", "-", "-"]]
    assert "as fast as eager" in note
    rates = variants.comparison("decode", "requests", results, faster_is_less=False)
    assert rates[3].split()[-1] == "0.50x"
    assert len(variants.comparison("decode", "requests", {"eager": {1: 1.0}}, faster_is_less=False)) == 4


@pytest.mark.parametrize(("tokens", "why"), [(99, ""), (100, "may have 100 tokens")])
def test_prompts_beyond_the_context(tokens: int, why: str) -> None:
    assert why in prefill.refusal(engine(), tokens)
    assert bool(why) == bool(prefill.refusal(engine(), tokens))


@pytest.mark.parametrize(
    ("requests", "new", "why"),
    [
        (2, 64, ""),
        (2, 85, "context of 100"),
        (5, 8, "max_running_requests is 4"),
        (3, 64, "the KV cache holds 200 tokens"),
    ],
)
def test_batches_that_cannot_run_together(requests: int, new: int, why: str) -> None:
    assert why in decode.refusal(engine(), requests, new)
    assert bool(why) == bool(decode.refusal(engine(), requests, new))


def test_an_engine_that_does_not_say_how_large_its_cache_is() -> None:
    silent = engine()
    silent.kv_tokens = 0
    assert decode.refusal(silent, 4, 64) == ""


def test_the_rate_counts_only_what_all_share() -> None:
    first = [(0.0, 1), (1.0, 1), (2.0, 1), (3.0, 1)]
    second = [(1.0, 1), (2.0, 1), (3.0, 1), (9.0, 1)]
    assert decode.common_rate([first, second]) == 2.0  # both from 1.0 to 3.0: two tokens each
    with pytest.raises(variants.Unmeasured, match="generate more tokens"):
        decode.common_rate([[(0.0, 1), (1.0, 1)], [(1.0, 1), (2.0, 1)]])


@pytest.mark.parametrize("requests", [1, 2, 32])
@pytest.mark.parametrize("new_tokens", [8, 64])
def test_the_rate_of_requests_in_step_is_that_of_the_steps(requests: int, new_tokens: int) -> None:
    """A step takes 10 ms, its tokens come 20 us apart."""
    arrivals = [[(step * 0.01 + row * 20e-6, 1) for step in range(new_tokens)] for row in range(requests)]
    assert decode.common_rate(arrivals) == pytest.approx(requests * 100)


@pytest.mark.parametrize(("requests", "error"), [(8, 0.001), (6, 0.03)])
def test_the_rate_of_requests_that_take_turns_is_that_of_the_steps(requests: int, error: float) -> None:
    """Four of them decode in each step: every second one, or two of three."""
    arrivals: list[list[tuple[float, int]]] = [[(row * 20e-6, 1)] for row in range(requests)]
    for turn in range(63 * requests):
        step, row = divmod(turn, 4)
        arrivals[turn % requests].append((0.01 + step * 0.01 + row * 20e-6, 1))
    assert decode.common_rate(arrivals) == pytest.approx(400, rel=error)


def test_the_rate_counts_tokens_and_not_chunks() -> None:
    assert decode.common_rate([[(0.0, 1), (1.0, 2), (2.0, 2)]]) == 2.0


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The variants that were launched, by a launch that starts nothing and fails for ``library``."""
    wanted: list[str] = []

    @contextmanager
    def launch(name: str, resolved: ResolvedLaunch) -> Iterator[Any]:
        wanted.append(name)
        if name == "library":
            raise LaunchError("NCCL is not there", code="F18", phase="CONNECT")
        yield engine()

    monkeypatch.setattr(variants, "_launched", launch)
    monkeypatch.setattr(prefill, "time_prefill", lambda _, n, repeat: prefill.PrefillResult(n, repeat, 0.5, 0.5, 0.5))
    monkeypatch.setattr(decode, "time_decode", lambda _, n, new, repeat: decode.DecodeResult(n, repeat, new, 2.0, 0.5))
    return wanted


@pytest.mark.parametrize(
    ("arguments", "row"),
    [(("prefill", "--tokens", "8,16"), "16 500.00"), (("decode", "--batch-sizes", "1,2"), "2 2.00")],
)
def test_what_was_measured_is_told_though_a_later_variant_fails(
    arguments: tuple[str, ...], row: str, launches: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    ran = run("bench", *arguments, "--variants", "eager,library,custom", "--json", str(file))
    assert (ran.code, launches) == (1, ["eager", "library"])
    assert "NCCL is not there" in ran.stderr.splitlines()[-1]
    assert row in [" ".join(line.split()) for line in ran.stdout.splitlines()]
    written = json.loads(file.read_text())[arguments[0]]
    assert {name: len(column) for name, column in written.items()} == {"eager": 2}


def test_where_nothing_was_measured_before_a_failure_there_is_no_table(launches: list[str], tmp_path: Path) -> None:
    ran = run("bench", "prefill", "--tokens", "8", "--variants", "library,eager", "--json", str(tmp_path / "x.json"))
    assert (ran.code, ran.stdout, list(tmp_path.iterdir())) == (1, "", [])


def test_launches_that_were_measured_are_told_though_a_later_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[LaunchReport] = []

    @contextmanager
    def launched(_: ResolvedLaunch, *, show_report: bool) -> Iterator[Any]:
        begun.append(LaunchReport("x"))
        if len(begun) == 3:
            raise LaunchError("rank 1 has died", "F06", "LOAD")
        yield SimpleNamespace(report=begun[-1])

    monkeypatch.setattr(launch, "launched", launched)
    file = tmp_path / "figures.json"
    ran = run("bench", "launch", "--ranks", "", "--repeat", "4", "--json", str(file))
    assert (ran.code, len(begun)) == (1, 3)
    assert ran.stderr.endswith("LaunchError F06 [LOAD] rank 1 has died\n")
    assert "a whole launch, median of 2, seconds" in ran.stdout
    assert len(json.loads(file.read_text())["launches"]) == 2


def test_a_launch_that_is_impossible_is_told_before_barriers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "ray_session", lambda *_: pytest.fail("Ray was asked for"))
    ran = run("bench", "launch", "--tp", "3")
    assert (ran.code, "must divide the model's num_attention_heads" in ran.stderr) == (2, True)


def test_requests_that_never_ran_together_are_left_out(
    launches: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_decode(_: Any, requests: int, new_tokens: int, repeat: int) -> decode.DecodeResult:
        rate = decode.common_rate([[(float(step + 8 * one), 1) for step in range(8)] for one in range(requests)])
        return decode.DecodeResult(requests, repeat, new_tokens, rate, requests / rate)

    monkeypatch.setattr(decode, "time_decode", time_decode)
    file = tmp_path / "figures.json"
    ran = run("bench", "decode", "--batch-sizes", "1,2", "--variants", "eager,custom", "--json", str(file))
    assert (ran.code, launches) == (0, ["eager", "custom"])
    assert "custom: 2 is left out: the requests never ran all at the same time for two steps" in ran.stderr
    written = json.loads(file.read_text())["decode"]
    assert {name: [one["requests"] for one in column] for name, column in written.items()} == {
        "eager": [1],
        "custom": [1],
    }


def test_lines_to_draw() -> None:
    assert variants.lines_of({"eager": {8: 2.0, 4: 1.0}, "custom": {}}) == {"eager": [(4, 1.0), (8, 2.0)]}
