"""SGLang's scheduler under the phases: real shapes with dummy weights, and faults provoked in its own objects.

Where there is one GPU, two ranks share it: every gate, record and registration is real, speed is not.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from pathlib import Path

import psutil
import pytest
from raylaunch_actors.kernel_cache import holding, pack, unpack

from raylaunch import Engine, LaunchConfig, LaunchError
from raylaunch.protocol import CaptureFacts, CommunicatorFacts, Gate, Phase, RegisterFacts
from raylaunch.report import LaunchReport
from raylaunch.sglang.arguments import IN_PIECES, PIECE_COMPILER
from raylaunch.sglang.source import installed_folder, known_arguments
from tests.gpu.conftest import gpus, memory_of
from tests.gpu.shapes import IMAGE, make_model
from tests.models import save
from tests.sglang.loss import lose_rank_1

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

PREFILL, DECODE = (64, 1024, 1152, 2048), (2, 8, 32)
LAYERS = None if (_layers := os.environ.get("RAYLAUNCH_TEST_LAYERS", "6")) == "all" else int(_layers)
NO_PIECES = "this version of SGLang captures nothing in pieces"
MODELS = ("qwen3-8b", "qwen3-coder-30b-a3b", "qwen2.5-vl-7b")


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("sglang is not installed")


def config_for(folder: Path, *more: str, ranks: int = 2) -> LaunchConfig:
    """A launch of a model folder: few shapes, PyTorch's and Triton's kernels, ranks sharing a GPU if they must."""
    share = 1.0 if gpus() >= ranks else 1.0 / ranks
    arguments = {
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        **({"mm_attention_backend": "triton_attn"} if "vl" in folder.name else {}),
        "skip_tokenizer_init": not (folder / "tokenizer.json").exists(),
        "max_total_tokens": 16384,
        "mem_fraction_static": 0.8 * share,
        "disable_radix_cache": True,
        "random_seed": 1,
    }
    return LaunchConfig.from_dict(
        {
            "name": "test",
            "model": {"path": str(folder), "load_format": "dummy", "dtype": "bfloat16"},
            "engine": {"kind": "sglang", "device": "cuda", "sglang": {"args": arguments}},
            "parallel": {"tensor_parallel_size": ranks},
            "communicator": {"kind": "sgl_kernel" if ranks > 1 else "custom"},
            "capture": {"prefill_tokens": PREFILL, "decode_batch_sizes": DECODE},
            "placement": {"resources_per_rank": {"GPU": share, "CPU": 1}},
            "deadlines": {"connect": 120, "warmup": 300},
            "environment": {"SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "0"},
        }
    ).override(*more)


def prefill_graphs(backend: str) -> str:
    return f"engine.sglang.args.cuda_graph_backend_prefill={backend}"


def makes_pieces() -> bool:
    """Whether this SGLang captures prefill in pieces: since 0.5.22 none does."""
    folder = installed_folder()
    return folder is not None and PIECE_COMPILER in known_arguments(folder)


def gone(pids: list[int]) -> bool:
    """Whether ranks and their GPU memory are gone, within two seconds."""
    end = time.monotonic() + 2
    while time.monotonic() < end:
        if not any(map(is_rank, pids)) and memory_of(pids) == 0:
            return True
        time.sleep(0.05)
    return False


def is_rank(pid: int) -> bool:
    """Whether a rank has this number: on a host of many threads it is soon another's."""
    try:
        return psutil.pid_exists(pid) and psutil.Process(pid).name().startswith("ray::Rank")
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("backend", ["tc_piecewise", "breakable"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_launched_and_answers_twice_alike(name: str, backend: str, ranks: int, tmp_path: Path) -> None:
    """The client of sglang#14193: two requests of 1025 token ids; and every shape's edge beside it."""
    if ranks > max(2, gpus()):
        pytest.skip(f"needs {ranks} GPUs")
    if backend == IN_PIECES and not makes_pieces():
        pytest.skip(NO_PIECES)
    folder = make_model(tmp_path / name, name, LAYERS, tokenizer="vl" in name)
    config = config_for(folder, prefill_graphs(backend), ranks=ranks)
    with Engine(config) as engine:
        print(engine.report.table(200))
        connected = [one.facts for one in engine.report.facts(Gate.CONNECTED)[0][1]]
        assert all(isinstance(one, CommunicatorFacts) and one.capacity == 131_071 for one in connected)
        captured = engine.report.facts(Gate.CAPTURED)
        assert [step.round for step, _ in captured] == ["prefill", "decode"]
        iterations = {"prefill": 2 if backend == IN_PIECES else 3, "decode": 3}
        for (round_name, shape), passes in iterations_of(engine.report).items():
            assert passes == list(range(1, iterations[round_name] + 1)), (round_name, shape)
        for _, arrivals in captured:
            counts = [one.facts.recorded for one in arrivals if isinstance(one.facts, CaptureFacts)]
            assert counts == counts[:1] * ranks
            assert all(inputs.count > 0 for inputs in counts[0].values())
        last = [one.facts for one in engine.report.facts(Gate.REGISTERED)[-1][1]]
        assert all(isinstance(one, RegisterFacts) and one.pending == 0 for one in last)
        assert {one.registered for one in last} == {last[0].registered} != {0}
        for length in (1025, 1152, 2048, 5):
            prompt = [1 + i % 900 for i in range(length)]
            answers = [engine.generate([prompt], max_new_tokens=8, ignore_eos=True)[0].token_ids for _ in range(2)]
            assert answers[0] == answers[1], length
            assert len(answers[0]) == 8
        pids = [place.pid for place in engine.report.places]
    assert gone(pids)


def iterations_of(report: LaunchReport) -> dict[tuple[str, int], list[int]]:
    """The iterations of each shape, by round and shape, in order: exactly those that are planned."""
    found: dict[tuple[str, int], list[int]] = {}
    for step, _ in report.facts(Gate.ITERATION):
        found.setdefault((step.round or "", step.shape or 0), []).append(step.iteration or 0)
    return found


@pytest.mark.parametrize("backend", ["tc_piecewise", "breakable"])
def test_an_image_is_answered(backend: str, tmp_path: Path) -> None:
    from PIL import Image

    if backend == IN_PIECES and not makes_pieces():
        pytest.skip(NO_PIECES)
    config = config_for(make_model(tmp_path / "vl", "qwen2.5-vl-7b", LAYERS, tokenizer=True), prefill_graphs(backend))
    with Engine(config) as engine:
        colours = [Image.new("RGB", (224, 224), colour) for colour in ("red", "blue", "red")]
        answers = [
            engine.generate(f"{IMAGE} t5 t6", images=[one], max_new_tokens=8, ignore_eos=True) for one in colours
        ]
        assert answers[0].token_ids == answers[2].token_ids
        assert answers[0].prompt_tokens > 60, "the image is worth many tokens"


def test_implementation_2_needs_no_registration(tmp_path: Path) -> None:
    if gpus() < 2:
        pytest.skip("SGLang's second all-reduce needs a GPU for each rank")
    with Engine(config_for(make_model(tmp_path / "m", MODELS[0], LAYERS), "communicator.kind=jit")) as engine:
        assert "jit" in engine.report.table(200)
        assert engine.generate([[7] * 1025], max_new_tokens=4)[0].token_ids


@pytest.mark.parametrize("asked", [False, True])
def test_flashinfers_all_reduce_is_there_only_where_it_is_asked_for_and_said(asked: bool, tmp_path: Path) -> None:
    """SGLang takes it for this model by itself on Hopper. VERIFY replays it."""
    if gpus() < 2:
        pytest.skip("FlashInfer's all-reduce needs a GPU for each rank")
    more = ["engine.sglang.args.flashinfer_allreduce_fusion_backend=trtllm", "deadlines.warmup=600"] if asked else []
    with Engine(config_for(make_model(tmp_path / "m", MODELS[1], LAYERS), *more)) as engine:
        print(engine.report.table(200))
        connected = [one.facts for one in engine.report.facts(Gate.CONNECTED)[0][1]]
        for facts in connected:
            assert isinstance(facts, CommunicatorFacts)
            assert facts.kind == ("flashinfer+sgl_kernel" if asked else "sgl_kernel")
            assert "FlashInfer's fused" in facts.reason
        answers = [engine.generate([[7] * 1025], max_new_tokens=8, ignore_eos=True)[0].token_ids for _ in range(2)]
        assert answers[0] == answers[1]


def test_an_all_reduce_that_is_named_and_impossible(tmp_path: Path) -> None:
    """F18: deterministic inference has SGLang reduce by NCCL alone; only a kind that is not named falls back."""
    folder = make_model(tmp_path / "m", MODELS[0], 2)
    config = config_for(folder, "engine.sglang.args.enable_deterministic_inference=true")
    with pytest.raises(LaunchError, match="disable_custom_all_reduce") as caught, Engine(config):
        pass
    assert (caught.value.code, caught.value.phase) == ("F18", "CONNECT")
    assert gone([one.pid for one in caught.value.ranks])


FAULTS = [
    ("{action: third_iteration, rank: 1}", "tc_piecewise", "F01", "CAPTURE", 1),
    ("{action: third_iteration, rank: 0}", "breakable", "F01", "CAPTURE", 0),
    ("{action: skip_registration, rank: 0}, {action: skip_registration, rank: 1}", "breakable", "F01", "REGISTER", 0),
    ("{action: no_capture_context, rank: 0}", "tc_piecewise", "F02", "CAPTURE", 0),
    ("{action: no_capture_context, rank: 1}", "breakable", "F02", "CAPTURE", 1),
    ("{action: extra_all_reduce, rank: 1, at: capture prefill 1024}", "tc_piecewise", "F03", "CAPTURE", None),
    ("{action: raise, rank: 1, at: capture prefill 1152 2}", "tc_piecewise", "F05", "CAPTURE", 1),
    ("{action: kill, rank: 1, at: capture prefill 64 1}", "breakable", "F06", "CAPTURE", 1),
    ("{action: sleep, rank: 1, at: capture decode 8 1}", "breakable", "F08", "CAPTURE", 1),
    ("{action: zero_all_reduce, rank: 1}", "breakable", "F12", "VERIFY", None),
    ("{action: warm_again, rank: 0}", "tc_piecewise", "F20", "CAPTURE", 0),
    ("{action: reversed_gpus, rank: 1}", "breakable", "F09", "CONNECT", None),
    ("{action: out_of_memory, rank: 1, at: load}", "breakable", "F23", "LOAD", 1),
    ("{action: out_of_memory, rank: 1, at: warmup}", "breakable", "F23", "WARMUP", 1),
    ("{action: out_of_memory, rank: 1, at: capture prefill 1024 2}", "tc_piecewise", "F23", "CAPTURE", 1),
    ("{action: out_of_memory, rank: 0, at: capture decode 8 1}", "breakable", "F23", "CAPTURE", 0),
]
FAULTS_OF_FOUR = [
    ("{action: third_iteration, rank: 3}", "tc_piecewise", "F01", "CAPTURE", 3),
    ("{action: raise, rank: 2, at: capture prefill 1152 2}", "breakable", "F05", "CAPTURE", 2),
    ("{action: kill, rank: 3, at: capture decode 8 1}", "breakable", "F06", "CAPTURE", 3),
    ("{action: zero_all_reduce, rank: 2}", "breakable", "F12", "VERIFY", None),
]


@pytest.mark.parametrize(
    ("ranks", "fault", "backend", "code", "phase", "rank"),
    [(2, *one) for one in FAULTS] + [(4, *one) for one in FAULTS_OF_FOUR],
    ids=[f"{one[2]}-{one[1]}-{one[0].split()[1][:-1]}" for one in FAULTS] + [f"{one[2]}-4" for one in FAULTS_OF_FOUR],
)
def test_faults_are_named(
    ranks: int, fault: str, backend: str, code: str, phase: str, rank: int | None, tmp_path: Path
) -> None:
    if (code == "F09" or ranks > 2) and gpus() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    if backend == IN_PIECES and not makes_pieces():
        if code == "F20":
            pytest.skip(NO_PIECES)
        backend = "breakable"
    model = make_model(tmp_path / "m", MODELS[0], 2)
    config = config_for(model, prefill_graphs(backend), f"faults=[{fault}]", "deadlines.capture=30", ranks=ranks)
    with pytest.raises(LaunchError) as caught, Engine(config):
        pass
    print(caught.value)
    assert (caught.value.code, caught.value.phase) == (code, phase)
    if rank is not None:
        assert caught.value.rank == rank
    assert gone([one.pid for one in caught.value.ranks])


def test_f23_a_cache_that_does_not_fit(tmp_path: Path) -> None:
    """Real, not provoked, and SGLang's own words: too small a part of the memory for any cache beside the weights."""
    config = config_for(make_model(tmp_path / "m", MODELS[0], 2), "engine.sglang.args.mem_fraction_static=0.001")
    with pytest.raises(LaunchError) as caught, Engine(config):
        pass
    assert (caught.value.code, caught.value.phase) == ("F23", "WARMUP"), caught.value
    assert "raise engine.sglang.args.mem_fraction_static" in caught.value.headline()
    assert gone([one.pid for one in caught.value.ranks])


def test_a_decode_that_misses_what_came_before_is_found(tmp_path: Path) -> None:
    """F12. With dummy weights attention adds next to nothing to what is compared."""
    config = config_for(save("qwen3_wide", tmp_path), "model.load_format=auto", "capture.prefill_tokens=[64, 256]")
    with (
        pytest.raises(LaunchError, match="differs from eager at decode") as caught,
        Engine(config.replace({"faults": [{"action": "stale_decode", "rank": 1}]})),
    ):
        pass
    assert (caught.value.code, caught.value.phase) == ("F12", "VERIFY")
    with Engine(config) as engine:  # as it is, nothing is wrong with it
        print(engine.report.table(200))
        first, second = (engine.generate([[7] * 300], max_new_tokens=32, ignore_eos=True)[0] for _ in range(2))
        assert first.token_ids == second.token_ids


def test_a_rank_that_dies_while_serving(tmp_path: Path) -> None:
    """F07: unready at once, the group is rebuilt, and running requests go on in it."""
    config = config_for(make_model(tmp_path / "m", MODELS[0], 2), "recovery.rebuilds=1")
    with Engine(config) as engine:
        before = engine.generate([[3] * 100], max_new_tokens=8, ignore_eos=True)[0].token_ids
        running = functools.partial(engine.generate, [[5] * 100], max_new_tokens=8000, ignore_eos=True)
        pids = lose_rank_1(engine, running, running_s=1, rebuilt_s=240)
        assert gone(pids)
        assert engine.generate([[3] * 100], max_new_tokens=8, ignore_eos=True)[0].token_ids == before


EVEN = ("capture.prefill_tokens=[64, 128, 192, 256]", "capture.decode_batch_sizes=[2, 4, 6, 8, 10, 12]")
LATE = (*EVEN, "capture.verify_first=0", "engine.sglang.args.disable_radix_cache=false")
FIRST = {"prefill 64", "prefill 256", "decode 2", "decode 12"}


@pytest.mark.parametrize("page", [1, 64])
def test_shapes_that_are_left_are_verified_between_requests(page: int, tmp_path: Path) -> None:
    """In step on all ranks, in rows of the cache that hold no prefix."""
    model = save("qwen3_wide", tmp_path)
    config = config_for(model, "model.load_format=auto", *LATE, f"engine.sglang.args.page_size={page}")
    with Engine(config) as engine:
        assert set(engine.report.facts(Gate.VERIFIED)[0][1][0].facts.shapes) == FIRST  # type: ignore[union-attr]
        prompts = [[start + i % 300 for i in range(200)] for start in range(1, 600, 100)]

        def ask() -> list[tuple[int, ...]]:
            """One after another: in other batches the sums are others."""
            return [engine.generate([one], max_new_tokens=16, ignore_eos=True)[0].token_ids for one in prompts]

        ask()  # from here on their prefixes are in the cache
        before, end = ask(), time.monotonic() + 60
        while engine.report.unverified and time.monotonic() < end:
            assert ask() == before, engine.report.unverified
            time.sleep(0.5)
        print(engine.report.table(200))
        assert engine.report.unverified == ()
        later = engine.report.facts(Gate.LATER)
        assert {f"{step.round} {step.shape}" for step, _ in later} == set(engine.report.shapes) - FIRST
        print("seconds of a shape:", *(f"{one.arrived - one.started:.3f}" for _, (one, *_) in later))
        assert ask() == before


@pytest.mark.parametrize("action", ["zero_all_reduce", "stale_decode"])
def test_a_wrong_graph_that_is_verified_late_ends_the_group(action: str, tmp_path: Path) -> None:
    """F12. The next group has all shapes verified first: the launch ends by the same."""
    faults = [{"action": action, "rank": 1, "at": "capture decode 8"}]
    config = config_for(save("qwen3_wide", tmp_path), "model.load_format=auto", *LATE, "recovery.rebuilds=2")
    with Engine(config.replace({"faults": faults})) as engine:
        assert len(engine.generate([[7] * 100], max_new_tokens=4, ignore_eos=True)[0].token_ids) == 4
        pids = [place.pid for place in engine.report.places]
        end = time.monotonic() + 200
        while engine.health(ask_ranks=False).condition != "failed" and time.monotonic() < end:
            time.sleep(0.1)
        (_, error), *_ = engine.failures
        print(error)
        assert (error.code, error.phase, error.round, error.shape) == ("F12", "SERVE", "decode", 8)
        assert "differs from eager at decode 8" in error.headline()
        assert (error.followers[0].code, error.followers[0].phase) == ("F12", "VERIFY")
        assert gone(pids)


def kernels_in(root: Path) -> set[str]:
    return {name for name in holding(str(root)).files if name.endswith((".so", ".cubin"))}


def test_copied_kernels_are_not_built_again(tmp_path: Path) -> None:
    """As on another node: the folder is another one, and nothing in it names the first."""
    model, first, second = make_model(tmp_path / "m", MODELS[0], 2), tmp_path / "first", tmp_path / "second"
    seconds = []
    for root in (first, second):
        with Engine(config_for(model, f"engine.sglang.cache_dir={root}", "deadlines.warmup=600")) as engine:
            assert engine.generate([[7] * 1025], max_new_tokens=8, ignore_eos=True)[0].token_ids
            seconds.append(engine.report.elapsed(Phase.WARMUP))
        if root is first:
            unpack(str(second), pack(str(first), list(holding(str(first)).files)))
            assert kernels_in(second) == kernels_in(first) != set()
    print(f"{len(kernels_in(first))} kernels; WARMUP took {seconds[0]:.1f} s without, {seconds[1]:.1f} s with copies")
    assert kernels_in(second) - kernels_in(first) == set()
