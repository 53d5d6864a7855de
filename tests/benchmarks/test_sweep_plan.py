"""From a sweep's file to its cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylaunch.benchmarks.sweep.plan import read_sweep
from raylaunch.config import shipped_configs
from raylaunch.errors import ConfigError
from tests.benchmarks.sweeps import settings_of, sweep_of

GRID = """
model: tiny-cpu
measure: launch
grid:
  tp: [1, 2]
  capture.enabled: [true, false]
"""


def test_every_combination_is_a_cell_in_the_order_of_the_file(tmp_path: Path) -> None:
    sweep, cells = sweep_of(tmp_path, GRID)
    assert settings_of(cells) == [(1, True), (1, False), (2, True), (2, False)]
    assert list(cells[0].settings) == ["parallel.tensor_parallel_size", "capture.enabled"]
    configs = [cell.config for cell in cells]
    assert [(one.parallel.tensor_parallel_size, one.capture.enabled) for one in configs if one] == settings_of(cells)
    assert (sweep.starts, sweep.side_by_side) == (3, None)


@pytest.mark.parametrize(
    ("more", "settings"),
    [
        ("exclude: [{tp: 1, capture.enabled: false}]", [(1, True), (2, True), (2, False)]),
        ("exclude: [{tp: 1}]", [(2, True), (2, False)]),
        ("cells: [{tp: 4}]", [(1, True), (1, False), (2, True), (2, False), (4,)]),
        ("cells: [{tp: 2, capture: {enabled: true}}]", [(1, True), (1, False), (2, True), (2, False)]),
    ],
    ids=["one is left out", "several are", "one more", "one more that is there already"],
)
def test_cells_beside_the_grid(more: str, settings: list[tuple[object, ...]], tmp_path: Path) -> None:
    assert settings_of(sweep_of(tmp_path, GRID + more)[1]) == settings


def test_cells_alone_and_no_cells_at_all(tmp_path: Path) -> None:
    assert settings_of(sweep_of(tmp_path, "measure: launch\ncells: [{tp: 1}, {tp: 2}]")[1]) == [(1,), (2,)]
    assert settings_of(sweep_of(tmp_path, "measure: launch")[1]) == [()]


def test_values_may_be_sections_and_leave_the_rest_of_the_section_alone(tmp_path: Path) -> None:
    text = "measure: launch\ngrid:\n  capture: [{enabled: false}, {prefill_tokens: [8]}]"
    first, second = (cell.config for cell in sweep_of(tmp_path, text)[1])
    assert first is not None
    assert second is not None
    assert (first.capture.enabled, first.capture.prefill_tokens) == (False, (8, 32, 128))
    assert (second.capture.enabled, second.capture.prefill_tokens) == (True, (8,))


def test_what_all_have_in_common(tmp_path: Path) -> None:
    _, cells = sweep_of(tmp_path, GRID + "settings: {engine: {threads: 2}, environment.X: 1}")
    assert {(cell.config.engine.threads, cell.config.environment["X"]) for cell in cells if cell.config} == {(2, "1")}


def test_only_what_varies_is_shown_with_the_bases_value_where_a_cell_has_none(tmp_path: Path) -> None:
    text = "measure: launch\ngrid: {tp: [1, 2], engine.threads: [1]}\ncells: [{capture.enabled: false}]"
    _, cells = sweep_of(tmp_path, text)
    tp, enabled = "parallel.tensor_parallel_size", "capture.enabled"
    assert [cell.shown for cell in cells] == [{tp: 1, enabled: True}, {tp: 2, enabled: True}, {tp: 2, enabled: False}]


def test_every_setting_of_the_file_is_named_without_secrets(tmp_path: Path) -> None:
    text = "measure: launch\nsettings: {engine.threads: 2, environment: {HF_TOKEN: hf_x, A: '1'}}\ngrid: {tp: [1, 2]}"
    text += "\ncells: [{capture.enabled: false, environment.HF_TOKEN: hf_y}]"
    _, cells = sweep_of(tmp_path, text)
    common = {"engine.threads": 2, "environment.HF_TOKEN": "***", "environment.A": "1"}
    assert [cell.named for cell in cells] == [
        {**common, "parallel.tensor_parallel_size": tp, "capture.enabled": enabled}
        for tp, enabled in ((1, True), (2, True), (2, False))
    ]


def test_ids_are_of_what_is_launched_and_measured_and_of_nothing_else(tmp_path: Path) -> None:
    ids = [cell.id for cell in sweep_of(tmp_path, GRID)[1]]
    assert len(set(ids)) == 4
    longer = GRID.replace("[1, 2]", "[4, 2, 1]") + "starts: 9\nside_by_side: 2\ncells: [{tp: 8}]"
    assert set(ids) <= {cell.id for cell in sweep_of(tmp_path, longer)[1]}
    elsewhere = GRID + "settings: {name: other, placement.address: '127.0.0.1:6379'}"
    assert ids == [cell.id for cell in sweep_of(tmp_path, elsewhere)[1]]
    moved = "model: tiny-cpu\nmeasure: launch\nsettings: {tp: 1}\ngrid: {capture.enabled: [true, false]}"
    assert ids[:2] == [cell.id for cell in sweep_of(tmp_path, moved)[1]]
    for other in (GRID.replace("launch", "decode"), GRID + "settings: {engine.threads: 2}"):
        assert not set(ids) & {cell.id for cell in sweep_of(tmp_path, other)[1]}


def test_a_cell_that_contradicts_itself_is_its_own_problem(tmp_path: Path) -> None:
    _, cells = sweep_of(tmp_path, "measure: launch\ngrid: {tp: [1, 2], nodes: [1, 2]}")
    assert [cell.config is None for cell in cells] == [False, True, False, False]
    assert "nodes must divide tensor_parallel_size = 1" in str(cells[1].problem)
    assert len({cell.id for cell in cells}) == 4


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = "model: tiny-cpu\nmeasure: launch\ngrid: {model.path: [./model, ./other]}"
    paths = [cell.config.model.path for cell in sweep_of(tmp_path, text)[1] if cell.config]
    assert paths == [str(tmp_path / "model"), str(tmp_path / "other")]
    (tmp_path / "own.yaml").write_text((shipped_configs() / "tiny-cpu.yaml").read_text())
    assert sweep_of(tmp_path, "model: own.yaml\nmeasure: launch")[1][0].config is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: {tp: [1]}", "measure = None: is required"),
        (
            "measure: {decode: {batches: [1]}}",
            r"measure.decode.batches = \[1\]: unknown key; .*known here: batch_sizes",
        ),
        ("measure: decoding", "measure.decoding = .*unknown key; did you mean 'decode'"),
        ("measure: []", "must name what is measured: some of launch"),
        ("measure: launch\ngrid: {tp: 2}", r"tp must have a list of values, such as \[1, 2\]"),
        ("measure: launch\ngrid: {tp: []}", "tp must have a list of values"),
        (
            "measure: launch\ngrid: {capture.enable: [true]}",
            "grid.capture.enable = True: unknown key; did you mean 'enab",
        ),
        ("measure: launch\ngrid: {tensor: [1]}", "grid.tensor = 1: unknown key; .*known here: name, model"),
        ("measure: launch\nsettings: {engine.thread: 1}", "settings.engine.thread = 1: unknown key; did you mean 'thr"),
        ("measure: launch\ncells: [{tp: 1}, {tpp: 1}]", "cells.1.tpp = 1: unknown key"),
        (
            "measure: launch\ngrid: {tp: [1]}\nexclude: [{tp: 2}]",
            "exclude.0 = .*no cell of the grid has these settings",
        ),
        ("measure: launch\ngrid: {placement.address: [a, b]}", "all cells run in one cluster: set it under settings"),
        ("measure: launch\nstart: 1", "start = 1: unknown key; did you mean 'starts'"),
        ("measure: launch\nside_by_side: 0", "side_by_side"),
        ("measure: launch\nmodel: ./nowhere.yaml", "MODEL = './nowhere.yaml': no such file"),
        (f"measure: launch\nmodel: {'x' * 300}.yaml", "MODEL = 'x+.yaml': no such file"),
        ("measure: launch\nsettings: {tp: 3, nodes: 2}", "nodes must divide"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_at_once(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(tmp_path, text)


def test_sweeps_that_ship() -> None:
    for text in ("nowhere", "x" * 300):
        with pytest.raises(ConfigError, match=r"no such file; sweeps that ship: .*tiny-cpu"):
            read_sweep(text)
    for file in (shipped_configs() / "sweeps").glob("*.yaml"):
        sweep, cells = sweep_of_file(file)
        assert cells
        assert sweep.starts > 1
        assert [cell.problem for cell in cells if cell.problem] == []


def sweep_of_file(file: Path):
    from raylaunch.benchmarks.sweep.plan import base_of, cells_of

    sweep, path = read_sweep(file.stem)
    assert path == file
    return sweep, cells_of(sweep, base_of(sweep, path), path)
