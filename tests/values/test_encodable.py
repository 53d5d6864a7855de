"""Text that cannot be encoded is refused with one message, in every way in."""

from __future__ import annotations

import asyncio

import pytest

from raylaunch import Engine, LaunchConfig
from raylaunch.commands.questions import read_questions
from raylaunch.errors import ConfigError, RequestError
from raylaunch.sglang.mapping import image_data
from raylaunch.values.encodable import problem_of
from tests.cli.runner import run

HALF = "a\ud83d"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", ""),
        ("\U0001f600", ""),
        (["a", 1, None, {"b": 2.0}], ""),
        (HALF, "character 1 is half of a surrogate pair (\\ud83d), which is no character"),
        ("\udcff", "character 0 is the byte 0xff, which is no UTF-8"),
        ("\udc7f", "character 0 is half of a surrogate pair (\\udc7f), which is no character"),
        ({"json_schema": {"title": [HALF]}}, "half of a surrogate pair"),
        ({HALF: 1}, "half of a surrogate pair"),
        (("a", HALF), "half of a surrogate pair"),
    ],
)
def test_what_is_wrong(value, problem):
    found = problem_of(value)
    assert found == problem or (problem and problem in found)


@pytest.mark.parametrize(
    ("prompt", "given", "text"),
    [
        (HALF, {}, r"the prompt cannot be encoded: character 1 is half"),
        ("x", {"stop": HALF}, r"stop"),
        ("x", {"stop": ["y", HALF]}, r"stop"),
        ("x", {"extra": {"regex": HALF}}, r"extra cannot be encoded"),
        ("x", {"extra": {"json_schema": {"enum": [HALF]}}}, r"extra cannot be encoded"),
    ],
)
@pytest.mark.parametrize("kind", ["reference", "sglang"])
def test_every_way_of_the_python_interface(kind, prompt, given, text):
    engine = Engine(LaunchConfig.default([f"engine.kind={kind}"]))  # such a request is refused before all else
    with pytest.raises(RequestError, match=text):
        engine.generate(prompt, **given)
    with pytest.raises(RequestError, match=text):
        engine.generate([prompt, "x"], **given)
    with pytest.raises(RequestError, match=text):
        next(engine.stream(prompt, **given))
    with pytest.raises(RequestError, match=text):
        asyncio.run(engine.agenerate(prompt, **given))
    with pytest.raises(RequestError, match=text):
        asyncio.run(anext(engine.astream(prompt, **given)))


def test_a_request_id():
    with pytest.raises(RequestError, match="request_id cannot be encoded"):
        next(Engine(LaunchConfig.default()).stream("x", request_id=HALF))


@pytest.mark.parametrize(
    "image", [f"https://h/{HALF}", f"data:image/png;base64,{HALF}", f"/nowhere/{HALF}", "/nowhere/\udcff"]
)
def test_images(image):
    with pytest.raises(RequestError, match=r"^image 0 cannot be "):
        image_data([image])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"prompt": "a\\ud83d", "answer": "b"}', "line 1 has prompt = 'a\\ud83d': character 1 is half"),
        (b'{"prompt": "a", "answer": "\\ud83d"}', "line 1 has answer"),
        (b'{"prompt": "a\xff", "answer": "b"}', "cannot be read: 'utf-8' codec"),
        pytest.param(b'{"prompt": ' + b"[" * 100_000, "line 1 is not JSON (it is nested too deep)", id="nested deep"),
    ],
)
def test_files_of_questions(tmp_path, content, text):
    file = tmp_path / "q.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_questions(str(file))
    assert text in str(caught.value)


def test_questions_as_other_programs_write_them(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_bytes('\ufeff{"prompt": "a\u2028\x85b", "answer": "c"}\r\n\r\n{"prompt": "d", "answer": "e"}'.encode())
    assert [one.prompt for one in read_questions(str(file))] == ["a\u2028\x85b", "d"]


def test_prompts_of_the_command_line():
    ran = run("generate", "--prompt", "ok", "--prompt", "\udcff")
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == "ConfigError --prompt = '\\udcff': character 0 is the byte 0xff, which is no UTF-8\n"
    assert run("generate", "--prompt", "ok", "--stop", "\udcff").code == 2
