"""Faults provoked in real ranks: each ends in its named error, in time, with nothing left behind."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.protocol import Gate
from tests.busy import patient
from tests.cli.runner import run

pytestmark = pytest.mark.usefixtures("clean")


@dataclass(frozen=True)
class Case:
    """A fault and how its launch must end. ``text`` must stand in the error; ``rank`` None: no single rank is named."""

    name: str
    faults: str
    code: str | None
    phase: str
    rank: int | None
    text: str
    round: str | None = None
    shape: int | None = None
    iteration: int | None = None


CASES = [
    Case("F01-third-iteration", "{action: third_iteration, rank: 1}", "F01", "CAPTURE", 1,
         "exactly 2 iterations", "prefill", 32, 3),
    Case("F01-unregistered", "{action: skip_registration, rank: 1}", "F01", "REGISTER", 1,
         "without peers' addresses", "prefill"),
    Case("F02-no-capture-context", "{action: no_capture_context, rank: 0}", "F02", "CAPTURE", 0,
         "captured outside the capture context", "prefill", 32, 2),
    Case("F03-extra-input", "{action: extra_all_reduce, rank: 1, at: capture prefill 32}", "F03", "CAPTURE", 1,
         "different all-reduce inputs", "prefill", 32),
    Case("F05-exception", "{action: raise, rank: 1, at: capture prefill 8 2}", "F05", "CAPTURE", 1,
         "ValueError: raised on purpose", "prefill", 8, 2),
    Case("F06-exit", "{action: exit, rank: 1, at: connect}", "F06", "CONNECT", 1, "rank 1 died"),
    Case("F06-segfault-in-load", "{action: segv, rank: 0, at: load}", "F06", "LOAD", 0, "Segmentation fault"),
    Case("F12-stale", "{action: stale_decode, rank: 1}", "F12", "VERIFY", None, "differs from eager at decode"),
    Case("F12-zeros", "{action: zero_all_reduce, rank: 1}", "F12", "VERIFY", None, "replay differs from eager"),
    Case("F19-version", "{action: other_version, rank: 1}", "F19", "CONNECT", 1, "version of torch: '0.0.0' on rank 1"),
    Case("F20-hole", "{action: warm_again, rank: 0, at: capture decode 2}, "
         "{action: warm_again, rank: 1, at: capture decode 2}", "F20", "CAPTURE", 0,
         "no graph for 1 pieces", "decode", 2),
    Case("F23-warmup", "{action: out_of_memory, rank: 0, at: warmup}", "F23", "WARMUP", 0,
         "no memory left in WARMUP (1048576.00 GiB asked for, "),
    Case("F23-capture", "{action: out_of_memory, rank: 1, at: capture prefill 8 2}", "F23", "CAPTURE", 1,
         "no memory left in CAPTURE prefill 8 tokens iteration 2 (1048576.00 GiB asked for, ", "prefill", 8, 2),
]  # fmt: skip


BY_DEFAULT = ("F03-extra-input",)
"""The others' rules are proven purely (tests/protocol) and between processes (tests/graphs, tests/communicator,
tests/reference) by default, and in a whole launch by the slow tests."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=() if case.name in BY_DEFAULT else pytest.mark.slow) for case in CASES],
)
def test_fault_is_named(case: Case, tiny: LaunchConfig) -> None:
    began = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        Engine(tiny.override(f"faults=[{case.faults}]")).start()
    error = caught.value
    assert (error.code, error.phase, error.rank) == (case.code, case.phase, case.rank), error
    assert (error.round, error.shape, error.iteration)[: 3 if case.iteration else 2] == (
        (case.round, case.shape, case.iteration)[: 3 if case.iteration else 2]
    ) or case.round is None, error
    assert case.text in str(error)
    assert "torn down in" in error.teardown
    assert "2 actors, 1 placement group released" in error.teardown
    assert [evidence.rank for evidence in error.ranks] == [0, 1]
    assert all(evidence.state for evidence in error.ranks)
    assert {evidence.device for evidence in error.ranks} == {"cpu"}
    assert time.monotonic() - began < patient(60)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        pytest.param("sleep", "still busy", marks=pytest.mark.slow),
        ("hold_gil", "native code holds"),
        pytest.param("stop", "its process is stopped", marks=pytest.mark.slow),
    ],
)
def test_f08_hang_is_named_with_stacks(action: str, text: str, tiny: LaunchConfig) -> None:
    """The peer waits in a collective at the time: it must not be blamed."""
    config = tiny.replace(
        {"faults": [{"action": action, "rank": 1, "at": "capture prefill 8 1"}], "deadlines.capture": 2}
    )
    with pytest.raises(LaunchError) as caught:
        Engine(config).start()
    error = caught.value
    assert (error.code, error.phase, error.rank, error.round, error.shape) == ("F08", "CAPTURE", 1, "prefill", 8), error
    assert text in error.ranks[1].state
    assert "in a collective" in error.ranks[0].state
    assert "all_reduce" in error.ranks[0].stacks
    if action == "hold_gil":
        assert "_hold_gil" in error.ranks[1].stacks  # from faulthandler: the interpreter itself cannot answer
    assert error.retryable


def test_f06_killed_rank_is_named_in_seconds(tiny: LaunchConfig) -> None:
    """Measured from the moment of the kill: the rank's log says when."""
    seen: list[float] = []

    def listener(step: object, index: int, steps: int) -> None:
        seen.append(time.monotonic())

    config = tiny.replace({"faults": [{"action": "kill", "rank": 1, "at": "capture prefill 8 1"}]})
    with pytest.raises(LaunchError) as caught:
        Engine(config, listener=listener).start()
    # The last step begins when the ranks are let into the iteration in which rank 1 is killed.
    assert time.monotonic() - seen[-1] < patient(3.0)
    assert caught.value.code == "F06"
    assert "fault provoked on purpose: kill" in caught.value.ranks[1].log_tail


@pytest.mark.slow
def test_f16_the_fallback_is_gloo_on_every_rank(tiny: LaunchConfig) -> None:
    with Engine(tiny.replace({"faults": [{"action": "no_shared_memory", "rank": 1}]})) as engine:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        said = [arrival.facts for arrival in engine.report.facts(Gate.CONNECTED)[0][1]]
    assert [facts.kind for facts in said] == ["gloo", "gloo"]
    assert all("rank 1 cannot share memory: refused on purpose" in facts.reason for facts in said)


@pytest.mark.slow
def test_f23_a_cache_that_does_not_fit(tiny: LaunchConfig) -> None:
    """Real, not provoked: with what it needs, and what would help. No address space is so large: nothing is touched."""
    with pytest.raises(LaunchError) as caught:
        Engine(tiny.replace({"engine.kv_tokens": 1_000_000_000_000_000})).start()
    error = caught.value
    assert (error.code, error.phase, error.retryable) == ("F23", "WARMUP", False), error
    assert "no memory left in WARMUP (" in error.headline()
    assert "lower engine.kv_tokens" in error.headline()
    assert "the KV cache needs " in str(error)


@pytest.mark.slow
def test_f10_taken_port_is_named(tiny: LaunchConfig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LaunchError) as caught:
            Engine(tiny.replace({"parallel.rendezvous_port": taken.getsockname()[1]})).start()
    assert (caught.value.code, caught.value.phase, caught.value.rank) == ("F10", "CONNECT", 0)
    assert "the port is taken" in str(caught.value)


@pytest.mark.slow
def test_f11_pieces_without_a_size_argument_answer_right(tiny: LaunchConfig) -> None:
    strip = "faults=[{action: strip_symbols, rank: 0}, {action: strip_symbols, rank: 1}]"
    with Engine(tiny.override(strip)) as engine:
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"


def test_f13_impossible_placement_is_refused_at_once(tiny: LaunchConfig) -> None:
    began = time.monotonic()
    with pytest.raises(LaunchError) as caught:
        Engine(tiny.replace({"placement.resources_per_rank": {"CPU": 64}})).start()
    assert time.monotonic() - began < patient(5)
    assert caught.value.code == "F13"
    assert "asked STRICT_PACK 2 x [64 CPU]" in str(caught.value)
    assert "free of 4" in str(caught.value)


def test_f13_busy_cluster_is_a_deadline_with_what_is_free(tiny: LaunchConfig) -> None:
    from ray.util.placement_group import placement_group

    from raylaunch.cluster.placement import release

    other = placement_group([{"CPU": 3}], name="somebody-else")
    assert other.wait(10)
    try:
        with pytest.raises(LaunchError) as caught:
            Engine(tiny.replace({"deadlines.place": 1})).start()
        assert caught.value.code == "F13"
        assert "CPU 1 free of 4" in str(caught.value)
        assert "somebody-else" in str(caught.value)
    finally:
        assert release(other)


@pytest.mark.parametrize(
    ("bundle", "settings", "said"),
    [
        (
            {"CPU": 100},
            ("deadlines.place=1",),
            "the placement group 'mine' was not ready in 1 s; asked PACK 1 x [100 CPU]",
        ),
        (
            {"CPU": 1},
            ("engine.device=cuda",),
            "has too few GPUs for ranks on GPUs: bundle 0 has 1 CPU, asked 2 x [1 GPU]",
        ),
    ],
)
def test_f13_of_a_named_group_is_about_that_group(
    bundle: dict[str, float], settings: tuple[str, ...], said: str, tiny: LaunchConfig
) -> None:
    """Before the launch of a rank, and told by ``doctor`` too."""
    from ray.util.placement_group import placement_group

    from raylaunch.cluster.placement import release

    group = placement_group([bundle], name="mine")
    settings = (*settings, "placement.placement_group=mine")
    try:
        with pytest.raises(LaunchError) as caught:
            Engine(tiny.override(*settings)).start()
        assert (caught.value.code, caught.value.phase) == ("F13", "PLACE")
        assert said in str(caught.value)
        ran = run("doctor", "--set", "placement.address=this-session", *(f"--set={one}" for one in settings))
        assert ran.code == 1
        assert said in ran.stdout.partition("\nproblems\n")[2]
    finally:
        assert release(group)


def test_doctor_looks_a_named_group_up(tiny: LaunchConfig) -> None:
    ran = run("doctor", "--set", "placement.address=this-session", "--set", "placement.placement_group=nosuch")
    assert ran.code == 1
    assert "placement.placement_group = 'nosuch': no such placement group; the cluster has: " in ran.stdout
