"""What formats of weights need of a node, on folders of empty files."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raylaunch.config import LaunchConfig
from raylaunch.errors import ConfigError
from raylaunch.model.hub import INDEX
from raylaunch.model.load_formats import FORMATS, KEPT, Weights, files_of, problem_with, reads_files, weights_of
from raylaunch.model_check import check_model

HERE = f"node {platform.node()}"
SHARDS = ("model-rank-0-part-0.safetensors", "model-rank-0-part-1.safetensors", "model-rank-1-part-0.safetensors")


def weights(folder: Path, load_format: str, **other: object) -> Weights:
    made = weights_of(LaunchConfig.default([f"model.path={folder}", f"model.load_format={load_format}"]), (0, 1))
    return replace(made, **other)  # type: ignore[arg-type]


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("load_format", "there", "read"),
    [
        ("auto", ("b.safetensors", "a.safetensors", "c.bin"), ["a.safetensors", "b.safetensors"]),
        ("auto", ("c.bin", "d.pt"), ["c.bin"]),
        ("safetensors", ("a.safetensors", "c.bin"), ["a.safetensors"]),
        ("pt", ("a.safetensors", "d.pt"), ["d.pt"]),
        ("mistral", ("model.safetensors", "consolidated.safetensors"), ["consolidated.safetensors"]),
        ("sharded_state", (*SHARDS, "model.safetensors"), [*SHARDS]),
        ("dummy", ("a.safetensors",), []),
        ("remote_instance", (), []),
    ],
)
def test_which_files_are_read(load_format: str, there: tuple[str, ...], read: list[str], tmp_path: Path) -> None:
    write(tmp_path, *there)
    assert [file.name for file in files_of(weights(tmp_path, load_format))] == read
    assert problem_with(weights(tmp_path, load_format)) == ""
    assert reads_files(load_format) == bool(read)


def test_an_index_says_which(tmp_path: Path) -> None:
    write(tmp_path, "a.safetensors", "consolidated.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))
    assert files_of(weights(tmp_path, "auto")) == [tmp_path / "a.safetensors"]
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "gone.safetensors"}}))
    assert (
        problem_with(weights(tmp_path, "safetensors")) == f"needs gone.safetensors in {tmp_path}, where {HERE} has none"
    )


@pytest.mark.parametrize(
    ("load_format", "there", "problem"),
    [
        ("safetensors", ("c.bin",), "needs *.safetensors in FOLDER, where HERE has none"),
        ("auto", (), "needs *.safetensors or *.bin or *.pt in FOLDER, where HERE has none"),
        (
            "sharded_state",
            SHARDS[:2],
            "needs model-rank-1-part-*.safetensors in FOLDER, where HERE has none; as many ranks",
        ),
        (
            "sharded_state",
            (*SHARDS, "model-rank-3-part-0.safetensors"),
            "FOLDER on HERE was saved by 4 ranks, and parallel.tensor_parallel_size is 2",
        ),
    ],
)
def test_what_is_missing_is_named(load_format: str, there: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    write(tmp_path, *there)
    said = problem_with(weights(tmp_path, load_format))
    assert said.startswith(problem.replace("FOLDER", str(tmp_path)).replace("HERE", HERE))
    assert len(said.splitlines()) == 1


def test_a_node_needs_the_shards_of_its_own_ranks_by_their_pattern(tmp_path: Path) -> None:
    write(tmp_path, "r1p0.safetensors")
    mine = weights(tmp_path, "sharded_state", pattern="r{rank}p{part}.safetensors", ranks=(1,))
    assert files_of(mine) == [tmp_path / "r1p0.safetensors"]
    assert "needs r0p*.safetensors" in problem_with(replace(mine, ranks=(0,)))


def test_a_pattern_may_say_how_numbers_are_written(tmp_path: Path) -> None:
    write(tmp_path, "r00p0.st", "r01p0.st", "r11p0.st")
    mine = weights(tmp_path, "sharded_state", pattern="r{rank:02d}p{part}.st", ranks=(1,), of=12)
    assert files_of(mine) == [tmp_path / "r01p0.st"]
    assert "was saved by 12 ranks, and parallel.tensor_parallel_size is 2" in problem_with(replace(mine, of=2))


@pytest.mark.parametrize("pattern", ["r{number}.st", "{}.st", "r{rank.st", "r{rank:x!}.st", "/r{rank}p{part}.st", ""])
def test_a_pattern_that_names_no_files_is_refused(pattern: str, tmp_path: Path) -> None:
    said = problem_with(weights(tmp_path, "sharded_state", pattern=pattern))
    assert said == f"is given the pattern {pattern!r}: must be names of files with {{rank}} and {{part}} in them"


def test_files_on_the_hub_are_missed_once_they_should_be_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raylaunch.model.hub.cached", lambda path, revision: tmp_path)
    named = replace(weights(tmp_path, "sharded_state"), path="some/model")
    assert problem_with(named, fetched=False) == ""
    assert "needs model-rank-0-part-*" in problem_with(named)


@pytest.mark.parametrize("extra", ["{pattern: 'x{rank}.st'}", '\'{"pattern": "x{rank}.st"}\''])
def test_the_pattern_is_sglangs(extra: str) -> None:
    config = LaunchConfig.default([f"engine.sglang.args={{model_loader_extra_config: {extra}}}"])
    assert weights_of(config, (0,)).pattern == "x{rank}.st"


@pytest.mark.parametrize("name", [name for name, one in FORMATS.items() if one.package[0]])
def test_a_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.safetensors")
    package, of_pip = FORMATS[name].package
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda asked: None if asked == package else pytest.fail(asked))
    said = problem_with(weights(tmp_path, name))
    assert said == f"needs the package {package}, which {HERE} has not: pip install {of_pip}"


@pytest.mark.parametrize(
    ("settings", "key", "right"),
    [
        (
            ["model.load_format=sharded_state"],
            "model.load_format",
            "the engine 'reference' has auto, safetensors, dummy;",
        ),
        (
            ["model.load_format=dummy", "recovery.keep_weights=true"],
            "recovery.keep_weights",
            "with auto, safetensors, pt,",
        ),
    ],
)
def test_what_the_reference_engine_cannot_is_refused(settings: list[str], key: str, right: str) -> None:
    assert "dummy" not in KEPT
    with pytest.raises(ConfigError) as caught:
        check_model(LaunchConfig.default(settings))
    assert caught.value.key == key
    assert right in caught.value.expected
    assert check_model(LaunchConfig.default(["model.load_format=safetensors", "recovery.keep_weights=true"]))
