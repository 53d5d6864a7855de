"""SGLang's arguments as it spells them, beside what its own parser makes of them."""

from __future__ import annotations

import argparse
import shlex

import pytest

from raylaunch.errors import ConfigError
from raylaunch.sglang import command_line
from raylaunch.sglang.command_line import arguments_of, parser_of

SOURCE = """
class ServerArgs:
    model_path: A[str, Arg(help="m", aliases=["--model"])]
    attention_backend: A[Optional[str], Arg(help="b", choices=CHOICES)] = None
    mem_fraction_static: A[Optional[float], "part"] = None
    context_length: A[Optional[int], Arg(help="c", type_parser=human_readable_int)] = None
    enable_metrics: A[bool, "figures", NS("x")] = False
    cuda_graph_bs_decode: A[Optional[List[int]], "sizes"] = None
    level: A[Literal[0, 1], "level"] = 0
    tokenizer_metrics: A[bool, Arg(help="t", action=argparse.BooleanOptionalAction)] = True
    labels: A[Optional[dict], Arg(help="l", type_parser=json.loads)] = None
    fp8: A[str, Arg(help="f", cli_name="--fp8-gemm-backend")] = "auto"
    inside: A[bool, Arg(no_cli=True)] = False

    def add_cli_args(parser):
        parser.add_argument("--cuda-graph-bs", type=int, nargs="+", action=X, new_flag="--cuda-graph-bs-decode")
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "srt").mkdir()
    (tmp_path / "srt" / "server_args.py").write_text(SOURCE)
    monkeypatch.setattr(command_line, "installed_folder", lambda: tmp_path)


@pytest.mark.parametrize(
    ("line", "made"),
    [
        ("", {}),
        ("--attention-backend fa3", {"attention_backend": "fa3"}),
        ("--attention-backend=fa3 --enable-metrics", {"attention_backend": "fa3", "enable_metrics": True}),
        ("--mem-fraction-static 0.8", {"mem_fraction_static": 0.8}),
        ("--context-length 4k", {"context_length": 4000}),
        ("--context-length 4Ki", {"context_length": 4096}),
        ("--context-length 1.5k", {"context_length": 1500}),
        ("--cuda-graph-bs-decode 1 2 4 --level 1", {"cuda_graph_bs_decode": [1, 2, 4], "level": 1}),
        ("--no-tokenizer-metrics", {"tokenizer_metrics": False}),
        ("""--labels '{"a": 1}'""", {"labels": {"a": 1}}),
        ("--fp8-gemm-backend triton", {"fp8": "triton"}),
        ("--model m", {"model_path": "m"}),
    ],
)
def test_arguments(line, made, installed):
    assert arguments_of(shlex.split(line)) == made


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--attention-backand fa3", "unrecognized arguments: --attention-backand"),
        ("--attention-backend", "expected one argument"),
        ("--attention fa3", "unrecognized arguments"),
        ("--mem-fraction-static x", "invalid float value"),
        ("--context-length 1.5Ki", "is no number such as 4096, 4k or 4Ki"),
        ("--inside", "unrecognized arguments"),
        ("--cuda-graph-bs 1 2", "SGLang calls it --cuda-graph-bs-decode now"),
        ("fa3", "unrecognized arguments: fa3"),
    ],
)
def test_what_is_written_otherwise(line, said, installed):
    with pytest.raises(ConfigError, match=said):
        arguments_of(shlex.split(line))


def test_without_sglang(monkeypatch):
    monkeypatch.setattr(command_line, "installed_folder", lambda: None)
    with pytest.raises(ConfigError, match="sglang is not installed here"):
        arguments_of(["--attention-backend", "fa3"])


LINES = [
    "--attention-backend triton --mem-fraction-static 0.5",
    "--context-length 4k --max-total-tokens 8Ki --max-prefill-tokens 77",
    "--cuda-graph-bs-decode 1 2 3 --cuda-graph-max-bs-prefill 9",
    "--enable-metrics --skip-tokenizer-init --trust-remote-code",
    """--json-model-override-args '{"a": 1}' --preferred-sampling-params '{"temperature": 0}'""",
    "--reasoning-parser qwen3 --tool-call-parser qwen25",
    "--lora-target-modules q_proj k_proj --max-loras-per-batch 2",
    "--fp8-gemm-backend triton --quantization fp8",
]


def test_sglangs_own_parser_makes_the_same_of_them():
    folder = command_line.installed_folder()
    if folder is None:
        pytest.skip("sglang is not installed")
    from sglang.srt.server_args import ServerArgs

    theirs = argparse.ArgumentParser()
    ServerArgs.add_cli_args(theirs)
    ours = parser_of(folder)
    unknown = set(theirs._option_string_actions) - set(ours._option_string_actions)
    assert unknown <= {"-h", "--help", "--config", "--collect-tokens-histogram", "--prefill-round-robin-balance"}
    for line in LINES:
        made = vars(theirs.parse_args(["--model", "m", *shlex.split(line)]))
        assert arguments_of(shlex.split(line)).items() <= made.items()
        defaults = vars(theirs.parse_args(["--model", "m"]))
        assert arguments_of(shlex.split(line)) == {name: one for name, one in made.items() if one != defaults[name]}
