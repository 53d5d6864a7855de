"""A sweep's table and drawings, and ``--report``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylaunch.benchmarks.sweep import run as sweep_run
from raylaunch.benchmarks.sweep.command import as_text
from raylaunch.benchmarks.sweep.lines import NAME
from raylaunch.benchmarks.sweep.plan import Cell
from raylaunch.benchmarks.sweep.show import (
    QUANTITIES,
    Row,
    draw,
    notes,
    points_of,
    rows_of,
    summary,
    tables,
    with_spread,
)
from tests.benchmarks.sweeps import line_of, sweep_of
from tests.cli.runner import run

READY, _, DECODE, *_ = QUANTITIES
GRID = """
measure: {decode: {batch_sizes: [1, 8]}}
starts: 2
grid:
  capture.enabled: [true, false]
  tp: [1, 2]
"""


def figures(ready: float, *rates: float) -> dict[str, Any]:
    """Of a start with time to ready, and tokens per second of 1 and 8 requests."""
    decode = [{"requests": n, "tokens_per_second": rate} for n, rate in zip((1, 8), rates, strict=False)]
    return {"launch": {"ready": ready}, "decode": decode}


def measured(cells: list[Cell]) -> list[dict[str, Any]]:
    """All cells but the third, which has failed, and the last, of which one start is missing."""
    first, second, third, last = cells
    lines = [
        line_of(cell, start, figures=figures(10.0 * start, 100.0, 800.0))
        for cell in (first, second)
        for start in (1, 2)
    ]
    lines.append(line_of(third, error="LaunchError F06 [LOAD] rank 1 died"))
    return [*lines, line_of(last, figures=figures(3.0, 40.0), left_out=["decode 8: the KV cache holds 64 tokens"])]


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    _, cells = sweep_of(tmp_path, GRID)
    return rows_of(cells, measured(cells), 2)


def words(line: str) -> list[str]:
    return line.split()


def test_the_tables(rows: list[Row]) -> None:
    (title, launches), (of_decode, decode) = tables(rows, 2, "grid")
    assert title == "grid: 4 cells, 5 of 8 starts measured, 1 cell failed"
    assert [words(line) for line in as_text(launches).splitlines() if "─" not in line and words(line)] == [
        ["capture.enabled", "tp", "starts", "ready,", "s"],
        ["true", "1", "2/2", "15.0", "±33%"],
        ["true", "2", "2/2", "15.0", "±33%"],
        ["false", "1", "failed", "-"],
        ["false", "2", "1/2", "3.00"],
    ]
    assert of_decode == "decode, tokens/s, by requests"
    assert [words(line) for line in as_text(decode).splitlines() if "─" not in line and words(line)] == [
        ["capture.enabled", "tp", "1", "8"],
        ["true", "1", "100", "±0%", "800", "±0%"],
        ["true", "2", "100", "±0%", "800", "±0%"],
        ["false", "2", "40.0", "-"],
    ]


@pytest.mark.parametrize(
    ("values", "text"),
    [([1234.5], "1234"), ([12.34], "12.3"), ([0.5], "0.50"), ([9.0, 11.0, 10.0], "10.0 ±10%"), ([0.0] * 2, "0.00")],
)
def test_figures(values: list[float], text: str) -> None:
    assert with_spread(values) == text


def test_what_the_table_does_not_say(rows: list[Row]) -> None:
    assert notes(rows, 2) == [
        "failed: capture.enabled false, tp 1: LaunchError F06 [LOAD] rank 1 died",
        "left out: capture.enabled false, tp 2: decode 8: the KV cache holds 64 tokens",
        "medians over the starts of a cell, ± half of their range",
    ]


def test_starts_that_ran_beside_others_on_a_node_and_other_versions_are_told(tmp_path: Path) -> None:
    _, cells = sweep_of(tmp_path, GRID)

    def on(node: str, cell: int, beside: int, torch: str = "2.11") -> dict[str, Any]:
        ranks = [{"node": node}]
        return line_of(cells[cell], beside=[f"{cells[beside].id}/1"], ranks=ranks, versions={"torch": torch})

    alone = [on("a", 0, 1), on("b", 1, 0)]
    assert notes(rows_of(cells, alone, 1), 1) == []
    together = [on("a", 0, 1), on("a", 1, 0), on("b", 2, 3, "2.13")]
    shared, versions = notes(rows_of(cells, together, 1), 1)
    assert shared.startswith("2 starts shared a node with others")
    assert versions == "not all were measured with the same versions: torch 2.11; torch 2.13"


def test_a_setting_is_called_as_its_option_or_by_the_end_of_its_name(tmp_path: Path) -> None:
    text = "measure: launch\ngrid: {nodes: [1, 2], engine.threads: [1, 2], capture.enabled: [true, false]}\n"
    text += "cells: [{tp: 4}]"
    _, cells = sweep_of(tmp_path, text)
    head = as_text(tables(rows_of(cells, [], 1), 1, "grid")[0][1]).splitlines()[1]
    assert words(head)[:-2] == ["nodes", "threads", "capture.enabled", "tp", "starts"]


def test_lines_are_drawn_against_the_first_number_in_a_panel_for_each_size(rows: list[Row]) -> None:
    title, points = points_of(rows, DECODE)
    assert title == "tp"
    assert [(point.panel, point.line, point.x) for point in points] == [
        ("requests 1", "capture.enabled true", 1),
        ("requests 8", "capture.enabled true", 1),
        ("requests 1", "capture.enabled true", 2),
        ("requests 8", "capture.enabled true", 2),
        ("requests 1", "capture.enabled false", 2),
    ]
    _, (first, *_) = points_of(rows, READY)
    assert (first.panel, first.least, first.middle, first.most) == ("", 10.0, 15.0, 20.0)


def test_without_a_number_lines_are_drawn_against_the_size_or_the_cells(rows: list[Row]) -> None:
    words_alone = [rows[0], rows[2]]
    title, points = points_of(words_alone, DECODE)
    assert (title, [(point.line, point.x) for point in points]) == ("requests", [("", 1), ("", 8)])
    title, points = points_of([rows[0], rows[3]], READY)
    assert (title, [point.x for point in points]) == ("tp", [1, 2])
    title, points = points_of(words_alone, READY)
    assert (title, len(points)) == ("", 1)


def test_drawings(rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for number, some in enumerate((rows, [rows[0], rows[2]], rows[:1])):
        for quantity in (READY, DECODE):
            file = tmp_path / f"{number}-{quantity.file}"
            draw(some, quantity, file, "grid")
            assert file.stat().st_size > 5000


def test_starts_that_the_file_asks_for_no_more_are_left_out(tmp_path: Path) -> None:
    text = GRID.replace("starts: 2", "starts: 1")
    _, cells = sweep_of(tmp_path, text)
    lines = [
        *(line_of(cell, 1, figures=figures(10.0)) for cell in cells),
        line_of(cells[0], 2, figures=figures(90.0)),
        line_of(cells[1], 2, error="LaunchError F06 [LOAD] rank 1 died"),
    ]
    fewer = rows_of(cells, lines, 1)
    title, _ = tables(fewer, 1, "grid")[0]
    assert (title, notes(fewer, 1)) == ("grid: 4 cells, 4 of 4 starts measured", [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = run("bench", "sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out"))
    assert (ran.code, "4 of 4 starts measured" in ran.stdout) == (0, True)


def test_an_interrupted_sweep_counts_each_start_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_run, "run_sweep", interrupted)
    _, cells = sweep_of(tmp_path, GRID)
    retried = [line_of(cells[0], error="no"), line_of(cells[0]), line_of(cells[0], 3)]
    (tmp_path / "out").mkdir()
    lines = [*retried, {**line_of(cells[0]), "cell": "of another file"}]
    (tmp_path / "out" / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = run("bench", "sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out"))
    assert ran.code == 130
    assert ran.stderr.startswith("1 of 8 starts have a result: the same command goes on\n")


def test_for_programs(rows: list[Row]) -> None:
    first, _, failed, _ = summary(rows)
    assert first["settings"] == {"capture.enabled": True, "parallel.tensor_parallel_size": 1}
    assert first["figures"]["launch.ready"] == [{"size": None, "unit": "s", "values": [10.0, 20.0], "median": 15.0}]
    assert failed["settings"] == {"capture.enabled": False, "parallel.tensor_parallel_size": 1}
    assert (failed["error"], failed["figures"]) == ("LaunchError F06 [LOAD] rank 1 died", {})


def test_cells_are_told_apart_also_by_what_an_earlier_file_did_not_vary(tmp_path: Path) -> None:
    _, (alone,) = sweep_of(tmp_path, "measure: launch\ncells: [{tp: 2}]")
    earlier = line_of(alone, figures=figures(10.0))
    assert earlier["settings"] == {"parallel.tensor_parallel_size": 2}
    _, cells = sweep_of(tmp_path, "measure: launch\ncells: [{tp: 2}, {tp: 1}]")
    made = summary(rows_of(cells, [earlier], 1))
    assert [one["settings"] for one in made] == [{"parallel.tensor_parallel_size": tp} for tp in (2, 1)]


def test_report_shows_what_is_there_and_launches_nothing(tmp_path: Path) -> None:
    _, cells = sweep_of(tmp_path, GRID)
    out, file = tmp_path / "out", tmp_path / "summary.json"
    ran = run("bench", "sweep", str(tmp_path / "sweep.yaml"), "--output", str(out), "--report")
    assert (ran.code, "no results.jsonl with results" in ran.stderr, out.exists()) == (2, True, False)
    out.mkdir()
    lines = [*measured(cells), {**line_of(cells[0]), "cell": "of another file"}]
    (out / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    ran = run("bench", "sweep", str(tmp_path / "sweep.yaml"), "--output", str(out), "--report", "--json", str(file))
    assert ran.code == 1  # a cell has failed
    assert "5 of 8 starts measured" in ran.stdout
    assert "left out: 1 cell in results.jsonl that sweep.yaml asks for no more" in ran.stdout
    assert len(json.loads(file.read_text())["cells"]) == 4
    assert (out / NAME).read_text().endswith('{"torn')


def test_a_secret_is_in_no_file(tmp_path: Path) -> None:
    text = "measure: launch\nsettings: {tp: 3}\ngrid: {environment.HF_TOKEN: [hf_first, hf_second]}"
    sweep_of(tmp_path, text)
    ran = run("bench", "sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out"))
    assert ran.code == 1  # three ranks divide no head, which is found before anything is launched
    lines = (tmp_path / "out" / NAME).read_text()
    assert lines.count("must divide the model's num_attention_heads") == 2
    named = {"parallel.tensor_parallel_size": 3, "environment.HF_TOKEN": "***"}
    assert [json.loads(line)["settings"] for line in lines.splitlines()] == [named] * 2
    assert "hf_" not in lines + ran.stdout + ran.stderr


def test_a_cell_that_has_become_impossible_keeps_what_was_measured_of_it(tmp_path: Path) -> None:
    _, (cell,) = sweep_of(tmp_path, "measure: launch\nstarts: 3\ncells: [{tp: 3}]")
    good = line_of(cell, 1, figures=figures(10.0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_text(json.dumps(good) + "\n")
    for options in ((), ("--retry-failed",)):  # the same error is written once
        ran = run("bench", "sweep", str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out"), *options)
        first, second = (json.loads(line) for line in (tmp_path / "out" / NAME).read_text().splitlines())
        assert (ran.code, first, second["start"]) == (1, good, 2)
        assert "must divide the model's num_attention_heads" in second["error"]
