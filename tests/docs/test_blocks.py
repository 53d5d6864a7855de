"""Every block of code on every page: in the table of ways, meant as it is written, and run where that takes seconds."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from raylaunch import LaunchConfig
from raylaunch.config.paths import relative_to_file
from tests.docs.commands import Wrong, check, check_raylaunch
from tests.docs.pages import Block, blocks, pages, spans
from tests.docs.reader import Reader
from tests.docs.ways import CONFIGURATION, WAYS
from tests.head import ROOT

SHELL = [block for block in blocks() if block.language == "sh"]
PYTHON = [block for block in blocks() if block.language == "python"]
YAML = [block for block in blocks() if WAYS.get(block.key) == CONFIGURATION]
NOW = [block for block in SHELL if block.key in WAYS and WAYS[block.key].kind == "now"]
SETTINGS = set(re.findall(r"^(?:\| |## )`([\w.]+)`", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE))
SECTIONS = "|".join(sorted({one.partition(".")[0] for one in SETTINGS}))
SETTING = re.compile(rf"(?:--set )?((?:{SECTIONS})(?:\.\w+)+)(?:=.*)?")


def named(found: list[Block]) -> list[str]:
    return [f"{block.page}:{block.line}" for block in found]


def test_every_block_is_in_the_table_and_nothing_else_is() -> None:
    tested = [block for block in blocks() if block.language != "text"]
    unknown = [f"{block.page}:{block.line}: {block.key}" for block in tested if block.key not in WAYS]
    assert (unknown, sorted(set(WAYS) - {block.key for block in tested})) == ([], [])


def test_a_block_that_is_only_read_says_why() -> None:
    assert [key for key, way in WAYS.items() if (way.kind == "read") != bool(way.why)] == []
    elsewhere = {file for way in WAYS.values() for file in re.findall(r"tests/\S+\.py", way.why)}
    assert [file for file in elsewhere if not (ROOT / file).is_file()] == []


def test_every_block_says_its_language() -> None:
    assert {block.language for block in blocks()} <= {"sh", "python", "yaml", "json", "text"}


@pytest.mark.parametrize("page", [page for page in pages() if any(block.page == page for block in SHELL)])
def test_commands_files_and_settings_exist(page: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.folder)
    made = {"gsm8k.jsonl"}  # the reader's own
    for block in SHELL:
        if block.page == page:
            check(block.text, made)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("raylaunch serv", "no command serv"),
        ("cd /tmp && raylaunch generate --prompts 1+1=", "No such option"),
        ("raylaunch generate --set capture.enabeld=false", "did you mean 'enabled'"),
        ("raylaunch generate nowhere.yaml", "nowhere.yaml"),
        ("RAY_ADDRESS=A:1 raylaunch serve Qwen/Qwen3-8B --tp two", "tp"),
        ("raylaunch serve Qwen/Qwen3-8B --set parallel.tp=2", "parallel.tp"),
        ("raylaunch eval --data nowhere.jsonl", "no file nowhere.jsonl"),
        ("ray job submit -- python -m raylaunch bench nothing", "no command nothing"),
        ("ray jobs submit -- python -m raylaunch", "no such command"),
        ("ray start --heads", "heads"),
        ("x=$(srun --ntasks=1 raylaunch docter)", "no command docter"),
        ("ray symmetric-run --address A:1 --num-cpu=2 -- raylaunch doctor", "num-cpu"),
        ("serve deploy examples/serve/nothing.yaml", "no file"),
        ('pip install -e ".[server]"', "no extra server"),
        ("kubectl apply -f examples/kuberay/nothing.yaml", "no file"),
        ("rm -rf build", "nothing is known"),
    ],
)
def test_a_mistake_would_be_seen(text: str, problem: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.folder)
    with pytest.raises(Wrong, match=re.escape(problem)):
        check(text, set())


@pytest.mark.parametrize("block", NOW, ids=named(NOW))
def test_it_runs(block: Block, reader: Reader) -> None:
    assert WAYS[block.key].says in reader.run(block)


@pytest.mark.parametrize("block", PYTHON, ids=named(PYTHON))
def test_python_compiles_and_its_names_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    compile(tree, block.page, "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@pytest.mark.parametrize("block", YAML, ids=named(YAML))
def test_configurations_are_valid(block: Block, tmp_path: Path) -> None:
    LaunchConfig.from_dict(relative_to_file(yaml.safe_load(block.text), tmp_path))


def test_commands_and_settings_within_lines_exist(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.folder)
    wrong = []
    for page, span in spans():
        if page == "docs/structure.md":  # whose names are modules
            continue
        if setting := SETTING.fullmatch(span):
            key = re.sub(r"^(engine\.sglang\.args|environment)\..*", r"\1", setting[1])
            wrong += [f"{page}: {span}"] * (key not in SETTINGS)
        elif span.startswith("raylaunch ") and "COMMAND" not in span and "MODEL" not in span:
            try:
                check_raylaunch(shlex.split(span)[1:], {"bench.yaml"}, whole=False)
            except Wrong as error:
                wrong.append(f"{page}: {span}: {error}")
    assert wrong == []
