"""What the command line says before it launches anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import raylaunch
from raylaunch.config import LaunchConfig, shipped_configs
from raylaunch.terminal.arguments import undecodable
from tests.cli.runner import run

HEAVY = {"ray", "torch", "transformers", "pydantic", "yaml", "zmq", "msgspec", "numpy"}


def test_version() -> None:
    assert run("--version").stdout == f"raylaunch {raylaunch.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("generate",),
        ("eval",),
        ("doctor",),
        ("bench",),
        ("bench", "launch"),
        ("bench", "allreduce"),
        ("bench", "prefill"),
        ("bench", "decode"),
        ("config",),
        ("chat",),
    ],
)
def test_every_command_has_help(arguments: tuple[str, ...]) -> None:
    ran = run(*arguments, "--help")
    assert ran.code == 0
    assert "Usage" in ran.stdout


def test_a_comparison_with_sglang_says_that_the_default_will_not_do() -> None:
    assert "needs --engine sglang" in " ".join(run("bench", "sglang", "--help").stdout.replace("│", "").split())


def test_the_command_line_loads_nothing_heavy() -> None:
    """What keeps ``--help`` quick, measured by what is loaded and not by a clock on a shared machine."""
    code = "import sys, raylaunch.cli, raylaunch.commands.app; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate",), "--prompt = '': give one, or --prompt-file FILE, or pipe prompts"),
        (("eval",), "Missing option '--data'"),
        (("eval", "--data", "x", "--limit", "0"), "--limit"),
        (("generate", "--prompt", "a", "--nonsense"), "No such option"),
        (("nonsense",), "No such command"),
        (("generate", "no-such.yaml", "--prompt", "a"), "configurations that ship: "),
        (("doctor", "./no-such-model"), "MODEL = './no-such-model': no such file or folder"),
        (("config", "tiny-cup"), "did you mean tiny-cpu?"),
        (("config", "--tp", "0"), "parallel.tensor_parallel_size = 0: input should be greater than 0"),
        (("config", "--engine", "vllm"), "engine.kind = 'vllm': input should be 'reference' or 'sglang'"),
        (("config", "--dtype", "int8"), "model.dtype = 'int8'"),
        (("generate", "--prompt", "a", "--tp", "3"), "launched with 1, 2, 4, 8"),
        (("generate", "--prompt", "a", "--set", "capture.shapes=[8]"), "capture.shapes = [8]: unknown key"),
        (("generate", "--prompt", "a", "--set", "nonsense"), "must be KEY=VALUE"),
        (("generate", "--prompt", "a", "--set", "parallel.tensor_parallel_size=3"), "launched with 1, 2, 4, 8"),
        (("generate", "--prompt", "a", "--temperature", "-1"), "ConfigError --temperature = '-1.0'"),
        (("generate", "--prompt", "a", "--max-new-tokens", "-1"), "ConfigError --max-new-tokens = '-1'"),
        (("generate", "--prompt", "a", "--prompt-file", "x"), "leave out either this or --prompt"),
        (("generate", "--prompt-file", "no-such-file"), "--prompt-file = 'no-such-file': cannot be read"),
        (("generate", "--prompt-file", "/dev/null"), "--prompt-file = '/dev/null': holds no prompt"),
        (("chat", "http://127.0.0.1:1"), "no model can be asked there: "),
        (("chat", "http://127.0.0.1:1", "--tp", "2"), "is a server: leave out what is of a launch"),
        (("chat", "--temperature", "-1"), "--temperature = '-1.0'"),
        (("generate", "--prompt", "a", "--prompt", "b", "--stream"), "only a single prompt can be streamed"),
        (("generate", "--prompt", "a", "--trace", "no/such/folder/x.json"), "there is no folder"),
        (("generate", "--prompt", "a", "--trace", "x" * 300), "cannot be written: File name too long"),
        (("eval", "--data", "sums-heldout", "--output", "."), "is a folder"),
        (("bench", "launch", "--ranks", "2,x"), "must be numbers of ranks"),
        (("bench", "launch", "--set", "parallel.nodes=3"), "nodes must divide"),
        (("bench", "prefill", "--tokens", "128,x"), "must be lengths of prompts"),
        (("bench", "prefill", "--variants", "fast"), "must name some of eager, library, custom, inductor"),
        (("bench", "prefill", "--variants", "inductor"), "capture.compiler = 'inductor': needs GPUs"),
        (("bench", "decode", "--batch-sizes", ""), "must be numbers of requests"),
        (("bench", "decode", "--json", "no/such/folder/x.json"), "there is no folder"),
        (("generate", "--prompt", "a", "--debug", "rocm"), "debug = 'rocm': input should be 'off' or 'cuda'"),
        (("bench", "allreduce", "--sizes", "8,x"), "must be sizes in KiB"),
        (("bench", "allreduce", "--sizes", ""), "must be sizes in KiB"),
        (("bench", "allreduce", "--plot", "x.sgv"), "'x.sgv': must end in one of .svg, .png, .pdf"),
        (("bench", "prefill", "--plot", "x"), "'x': must end in one of .svg, .png, .pdf"),
        (("bench", "allreduce", "--set", "parallel.tensor_parallel_size=1"), "one rank reduces nothing"),
        (("generate", "--prompt", "a", "--set", "communicator=fastest"), "communicator.kind = 'fastest'"),
        (
            ("generate", "--prompt", "a", "--set", "engine=sglang", "--set", "communicator=symmetric_memory"),
            "enable_torch_symm_mem",
        ),
        (("generate", "--prompt", "a", "--set", "communicator=jit"), "only the engine 'sglang' has it"),
        (("generate", "--prompt", "a", "--set", "communicator=sgl_kernel"), "needs GPUs"),
        (("generate", "--prompt", "a", "--set", "communicator=symmetric_memory"), "needs GPUs"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_launched(arguments: tuple[str, ...], said: str) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert said in " ".join(ran.stderr.replace("│", " ").split())
    assert "Traceback" not in ran.stderr
    assert "PLACE" not in ran.stderr


def test_a_cluster_that_nobody_listens_at_is_a_failed_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ran = run("generate", "--prompt", "a")
    assert ran.code == 1
    assert ran.stderr.splitlines()[-1].startswith("LaunchError [PLACE] no Ray cluster at '127.0.0.1:1'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "1+1=", "answer": "2"}\n{"prompt"', "line 2 is not JSON"),
        ('\n\n["1+1=", "2"]', "line 3 is list, not an object"),
        ('{"prompt": "1+1="}', "line 1 has no 'answer'"),
        ('{"prompt": "1+1=", "answer": 2}', "line 1 has answer = 2, which is no text"),
        ('{"prompt": "", "answer": "2"}', "line 1 has an empty prompt"),
        ('{"prompt": "1+1=", "answer": "2", "max_new_tokens": 4}', "line 1 has 'max_new_tokens', which nothing would"),
        ("\n", "holds no line"),
    ],
)
def test_a_malformed_line_of_data_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    ran = run("eval", "--data", str(file))
    assert ran.code == 2
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_data_that_does_not_exist() -> None:
    ran = run("eval", "--data", "nonsense")
    assert ran.code == 2
    assert "data that ships: sums-heldout.jsonl" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "--prompt", "a\udcff"], "--prompt = "),
        (["generate", "--prompt=a\udcff"], "argument = "),
        (["serve", "--api-key", "sk\udcff"], "--api-key = '...'"),
        (["serve", "--set", "serve.api_key=sk\udcff"], "--set = '...'"),
        (["generate", "nowhere\udcff.yaml"], "argument = "),
        (["generate", "--trace", "a\udcff.json", "--set", "model.path=\udcff"], "--set = "),
        (["generate", "--trace", "a\udcff.json"], ""),
        (["generate", "--trace=a\udcff.json", "--prompt", "é€😀"], ""),
        (["eval", "--data", "a\udcff.jsonl"], ""),
    ],
)
def test_arguments_that_are_not_utf_8_are_named_but_for_files(arguments: list[str], named: str) -> None:
    said = undecodable(arguments)
    assert said.startswith(named) if named else said == ""
    assert not named or r"\\xff" in said or "'...'" in said
    assert "sk" not in said


def test_a_configuration_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    file = tmp_path / "c\udcff.yaml"
    file.write_text("model: {path: x/y}\n")
    assert undecodable(["generate", str(file)]) == ""


def test_a_printed_configuration_has_what_the_options_and_settings_say(tmp_path: Path) -> None:
    ran = run("config", "tiny-cpu", "--tp", "4", "--max-context", "64", "--set", "parallel.tensor_parallel_size=8")
    (tmp_path / "config.yaml").write_text(ran.stdout)
    config = LaunchConfig.from_yaml(tmp_path / "config.yaml")
    assert (config.parallel.tensor_parallel_size, config.engine.max_context) == (8, 64)
    assert (ran.code, ran.stderr) == (0, "")
    again = run("config", str(tmp_path / "config.yaml"))
    assert again.stdout == ran.stdout


def test_a_model_alone_says_first_what_was_chosen_and_why() -> None:
    folder = shipped_configs() / "models" / "tiny-adder"
    ran = run("config", str(folder), "--device", "cpu", "--load-format", "dummy")
    assert ran.stderr.startswith(f"model {folder}, a folder; engine reference: ")
    assert "load_format: dummy" in ran.stdout
    assert json.loads(run("config", "--schema").stdout)["title"] == "LaunchConfig"
