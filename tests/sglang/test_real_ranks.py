"""SGLang's own scheduler in two ranks on CPUs, on the embedded model: launched, answering, lost, served.

A CPU shows all but graphs; ``tests/gpu/test_sglang.py`` shows those. Skipped where SGLang cannot run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raylaunch import Engine, LaunchConfig, LaunchError, RequestError
from raylaunch.config import shipped_configs
from raylaunch.frontends.sampling import SamplingParams
from raylaunch.sglang.arguments import installed_folder
from raylaunch.sglang.detokenizer_keeper import RESTARTS
from tests.gpu.shapes import IMAGE, add_tokenizer
from tests.kept import KEEP, checkpoint, rebuilds_read_nothing
from tests.models import save
from tests.sglang.loss import lose_rank_1
from tests.standing import lose, pids_of, said, spare_pids, streaming, without_spares
from tests.survival import CLIENTS, survive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BEGAN = time.time()
SUMS = [(12, 30), (7, 8), (45, 54), (99, 1)]


@pytest.fixture(scope="module", autouse=True)
def can_run() -> None:
    if installed_folder() is None:
        pytest.skip("sglang is not installed")
    if importlib.util.find_spec("vllm") is None and importlib.util.find_spec("sgl_kernel") is None:
        pytest.skip("on a CPU, SGLang's models import sgl_kernel's CPU build or vllm")


def config_of(*more: str) -> LaunchConfig:
    cores = len(os.sched_getaffinity(0))
    return LaunchConfig.from_dict(
        {
            "name": "real",
            "model": {"path": str(shipped_configs() / "models" / "tiny-adder"), "dtype": "float32"},
            "parallel": {"tensor_parallel_size": 2},
            "engine": {
                "kind": "sglang",
                "device": "cpu",
                "kv_tokens": 4096,
                "sglang": {
                    "args": {
                        "attention_backend": "torch_native",
                        "sampling_backend": "pytorch",
                        "mem_fraction_static": 0.1,
                        "random_seed": 1,
                    }
                },
            },
            "environment": {"SGLANG_CPU_OMP_THREADS_BIND": f"0|{min(1, cores - 1)}"},
            "deadlines": {"connect": 150},
        }
    ).override(*more)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def shared_memory(pids: list[int]) -> list[str]:
    """What SGLang has left in /dev/shm: named after these processes, or after any engine of this run that has ended;
    others may run beside it."""
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):  # it has ended
            mapped += maps.read_text() if maps.parent.name != str(os.getpid()) else ""
    left = []
    for file in Path("/dev/shm").iterdir():
        with contextlib.suppress(OSError):
            of_an_engine = file.name.startswith("sglang_loads") and file.stat().st_mtime > BEGAN
            if (of_an_engine and file.name not in mapped) or any(f"_{pid}_" in file.name for pid in pids):
                left.append(file.name)
    return left


def test_yarn_makes_the_context_longer(tmp_path: Path) -> None:
    yarn = str(save("qwen3_yarn", tmp_path))
    small = config_of(f"model.path={yarn}", "parallel.tensor_parallel_size=1", "environment={}")
    prompt = [list(range(3, 203))]
    with Engine(small) as engine:
        assert engine.max_context == engine.frontend.side.manager.context_len == 256
        (answer,) = engine.generate(prompt, max_new_tokens=8)
        assert len(answer.token_ids) == 8
        with pytest.raises(RequestError, match="together at most 256"):
            engine.generate(prompt, max_new_tokens=57)


def test_a_format_that_writes_shards_and_reads_them_in_the_next_launch(tmp_path: Path) -> None:
    folder, answers = save("qwen3_tied", tmp_path), []
    prompt = [list(range(3, 20))]
    for name in ("auto", "presharded", "presharded"):
        with Engine(config_of(f"model.path={folder}", f"model.load_format={name}")) as engine:
            answers.append(engine.generate(prompt, max_new_tokens=8)[0].token_ids)
    assert list(folder.glob("presharded/TP-2-*/READY"))
    assert answers[0] == answers[1] == answers[2]


def test_a_rebuild_reads_no_weights_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = checkpoint(tmp_path)
    rebuilds_read_nothing(config_of(f"model.path={tmp_path}", *KEEP), files, caplog)


def test_it_answers_and_survives_the_loss_of_a_rank() -> None:
    """F07: unready at once, the group is rebuilt, and running requests go on in it."""
    with Engine(config_of("recovery.rebuilds=1")) as engine:
        print(engine.report.table(140))
        texts = [one.text for one in engine.generate([f"{a}+{b}=" for a, b in SUMS], max_new_tokens=8)]
        assert texts == [str(a + b) for a, b in SUMS]
        assert engine.generate("12+30=", max_new_tokens=8, extra={"min_p": 0.5}).text == "42"
        chunks = list(engine.stream("12+30=", max_new_tokens=8))
        assert "".join(chunk.text for chunk in chunks) == "42"
        running = functools.partial(engine.generate, "1+1=", max_new_tokens=400, ignore_eos=True)
        pids = lose_rank_1(engine, running, running_s=0.5, rebuilt_s=150)
        assert engine.failures[0][1].code == "F07"
        assert engine.failures[0][1].rank == 1
        assert alive(pids) == []
        assert engine.generate("12+30=", max_new_tokens=8).text == "42"
        pids = [place.pid for place in engine.report.places]
    assert alive(pids) == []
    assert shared_memory(pids) == []


@pytest.mark.timeout(850)
@pytest.mark.parametrize(("losses", "standby"), [(3, 0), pytest.param(10, 1, marks=pytest.mark.timeout(1500))])
def test_no_request_is_lost_with_its_group(losses: int, standby: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer is the one without a loss, token by token: none twice, none missing."""
    more = (f"recovery.rebuilds={2 * losses}", f"recovery.standby={standby}", "deadlines.health=4")
    with Engine(config_of(*more)) as engine:
        prompts, params = [f"{a}+{b}=" for a, b in SUMS], SamplingParams(max_new_tokens=60, ignore_eos=True)
        seen = survive(engine, losses, prompts, params, lambda: spare_pids(engine, 2) if standby else None)
        assert engine.restarts >= losses
    with capsys.disabled():
        figures = ", ".join(f"{one:.1f}" for one in seen.pauses)
        text = f"{losses} losses, standby {standby}, {seen.answers} answers; seconds from a signal to the next token:"
        print(f"\n{text} {figures}")
    assert (seen.failed, seen.unlike) == ([], [])
    assert seen.answers >= CLIENTS


def test_a_rebuild_adopts_standby_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    with Engine(config_of("recovery.rebuilds=5", "recovery.standby=1", "recovery.give_up_s=300")) as engine:
        right, lost, pauses = engine.generate("12+30=", max_new_tokens=8).text, pids_of(engine), list[float]()

        def loses(rank: int) -> None:
            pauses.append(lose(engine, rank, came))
            with capsys.disabled():
                print(f"\n{engine.report.table(140)}\n{said(pauses)}", flush=True)

        with streaming(engine, 100) as came:
            spares = spare_pids(engine, 2)
            with capsys.disabled():
                print(f"\n{engine.report.table(140)}\n{engine.report.standby.nbytes >> 21} MiB each", flush=True)
            loses(0)
            assert sorted(pids_of(engine)) == sorted(spares)
            lost += spares
            without_spares(engine)  # in the middle of their imports
            loses(1)
        assert engine.generate("12+30=", max_new_tokens=8).text == right == "42"
        lost += pids_of(engine)
    assert alive(lost) == []
    assert shared_memory(lost) == []


@pytest.mark.parametrize(
    ("fault", "code", "phase", "rank"),
    [
        ("{action: kill, rank: 1, at: load}", "F06", "LOAD", 1),
        ("{action: other_version, rank: 1}", "F19", "CONNECT", 1),
        ("{action: raise, rank: 0, at: warmup}", None, "WARMUP", 0),
        ("{action: sleep, rank: 1, at: verify}", "F08", "VERIFY", 1),
        ("{action: out_of_memory, rank: 1, at: load}", "F23", "LOAD", 1),
        ("{action: out_of_memory, rank: 1, at: warmup}", "F23", "WARMUP", 1),
    ],
)
def test_faults_are_named(fault: str, code: str | None, phase: str, rank: int) -> None:
    with pytest.raises(LaunchError) as caught, Engine(config_of(f"faults=[{fault}]", "deadlines.verify=8")):
        pass
    assert (caught.value.code, caught.value.phase, caught.value.rank) == (code, phase, rank)
    pids = [one.pid for one in caught.value.ranks]
    assert alive(pids) == []
    assert shared_memory(pids) == []


def test_f23_a_cache_that_does_not_fit() -> None:
    """Real, not provoked, and SGLang's own words: too small a part of the memory for any cache beside the weights."""
    with pytest.raises(LaunchError) as caught, Engine(config_of("engine.sglang.args.mem_fraction_static=0.000001")):
        pass
    error = caught.value
    print(error)
    assert (error.code, error.phase, error.retryable) == ("F23", "WARMUP", False), error
    assert "no memory for the KV cache left in WARMUP (" in error.headline()
    assert "raise engine.sglang.args.mem_fraction_static" in error.headline()
    assert alive([one.pid for one in error.ranks]) == []


def test_an_image_is_answered(tmp_path: Path) -> None:
    """The image goes through the driver's processor to every rank, and decides what is answered."""
    if not any(True for _ in importlib.metadata.Distribution.discover(name="torchvision")):
        pytest.skip("needs torchvision itself, not what stands in for it")
    from PIL import Image

    folder = save("qwen2_5_vl", tmp_path)
    add_tokenizer(folder)
    with Engine(config_of(f"model.path={folder}", "engine.sglang.args.mm_attention_backend=sdpa")) as engine:
        images = [Image.new("RGB", (224, 224), colour) for colour in ("red", "blue", "red")]
        red, blue, again = (engine.generate(f"{IMAGE} t5", images=[one], max_new_tokens=8) for one in images)
        assert red.token_ids == again.token_ids
        assert red.token_ids != blue.token_ids
        assert red.prompt_tokens == 2 + (224 // 28) ** 2 + 1
        pids = [place.pid for place in engine.report.places]
    assert shared_memory([os.getpid(), *pids]) == []


@contextlib.contextmanager
def served(folder: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """``raylaunch serve`` as a user starts it; its address and its process."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    file = folder / "config.yaml"
    file.write_text(config_of(*more).model_dump_json(by_alias=True, exclude_unset=True))
    command = [sys.executable, "-m", "raylaunch", "serve", str(file), "--port", str(port), "--no-report"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def paused_for_longer_than_a_hang_may_last(url: str) -> None:
    """An operator holds a request in the middle of its answer, and lets it go on."""
    import httpx

    body = {"text": "1+1=", "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(httpx.post, f"{url}/generate", json=body, timeout=90)
        time.sleep(0.5)
        assert httpx.post(f"{url}/pause_generation", json={"mode": "in_place"}).status_code == 200
        time.sleep(16)
        assert not held.done()
        assert httpx.get(f"{url}/ready").status_code == 200
        assert httpx.post(f"{url}/continue_generation", json={}).status_code == 200
        assert held.result().json()["meta_info"]["completion_tokens"] == 400


def wait_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    import httpx

    end = time.monotonic() + 180
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health_generate", timeout=20).status_code == 200:
                return
        time.sleep(0.5)


def test_a_server_whose_detokenizer_cannot_be_kept_ends(tmp_path: Path) -> None:
    """It is started again three times; then whoever supervises the server sees that it failed."""
    import psutil

    with served(tmp_path) as (url, process):
        for _ in range(1 + RESTARTS):
            wait_healthy(url, process)
            children = psutil.Process(process.pid).children()
            (detokenizer,) = (one for one in children if "raylaunch.sglang.detokenizer" in one.cmdline())
            detokenizer.kill()
            time.sleep(1)
        assert process.wait(60) == 1


def test_it_is_served_with_sglangs_interface(tmp_path: Path) -> None:
    import httpx
    import openai

    with served(tmp_path, "deadlines.health=4", "deadlines.collective=8") as (url, process):
        wait_healthy(url, process)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        model = client.models.list().data[0].id
        answer = client.completions.create(model=model, prompt="12+30=", max_tokens=8, temperature=0)
        assert answer.choices[0].text == "42"
        streamed = client.completions.create(model=model, prompt="7+8=", max_tokens=8, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed) == "15"
        for wrong in (  # each would end the ranks
            {"sampling_params": {"json_schema": {"type": "object"}}},
            {"sampling_params": {"top_k": 1 << 31}},
            {"sampling_params": {"min_new_tokens": 1, "stop_token_ids": [1 << 30]}},
            {"sampling_params": {"logit_bias": {"3": 1e39}}},
            {"sampling_params": {"repetition_penalty": 1e-40}},
            {"return_logprob": True, "top_logprobs_num": [1], "stream": True},
            {"return_logprob": True, "top_logprobs_num": 999},
            {"return_logprob": True, "logprob_start_len": -5},
            {"positional_embed_overrides": {"positions": [0]}},
            {"text": None, "input_embeds": [[0.5]]},
        ):
            assert httpx.post(f"{url}/generate", json={"text": "12+30=", **wrong}, timeout=60).status_code == 400, wrong
        samples = client.completions.create(model=model, prompt="12+30=", max_tokens=8, temperature=0, n=2)
        assert [choice.text for choice in samples.choices] == ["42", "42"]
        body = {"input_ids": [3] * 1025, "sampling_params": {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}}
        twice = [httpx.post(f"{url}/generate", json=body, timeout=60).json()["output_ids"] for _ in range(2)]
        assert twice[0] == twice[1]
        paused_for_longer_than_a_hang_may_last(url)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        print(f"ended {time.monotonic() - asked:.1f} s after SIGTERM")
