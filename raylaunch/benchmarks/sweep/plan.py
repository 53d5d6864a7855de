"""What a sweep's file asks for: which cells, by an id of their own, and what is measured of each."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field, ValidationError, field_validator, model_validator

from raylaunch.config import LaunchConfig
from raylaunch.config.explain import explain
from raylaunch.config.files import read_yaml, shipped_configs
from raylaunch.config.overrides import changed, value_at
from raylaunch.config.paths import relative_to_file
from raylaunch.config.renamed import current_name
from raylaunch.config.types import Int, PositiveInt, Seconds, Section
from raylaunch.config.written import check_encoding
from raylaunch.errors import ConfigError, UnknownKey
from raylaunch.terminal.launch_options import SETTINGS
from raylaunch.values.masking import masked

FOLDER = "sweeps"
ID_DIGITS = 10
NO_PART_OF_A_CELL = ("name", "placement.address", "placement.namespace", "serve.api_key")
"""Settings that change no result: a cell keeps its id without them."""

Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class LaunchMeasure(Section):
    """The launch alone. Time to ready, and each phase's, is there of every cell."""


class DecodeMeasure(Section):
    """Output tokens per second of requests that run together, as ``raylaunch bench decode`` has it.

    Attributes:
        batch_sizes: requests that run together.
        new_tokens: that each generates.
        repeat: timed runs of each batch size; the median counts.
    """

    batch_sizes: Sizes = (1, 8, 32)
    new_tokens: Annotated[Int, Field(ge=8)] = 64
    repeat: PositiveInt = 3


class PrefillMeasure(Section):
    """Time from a prompt to its first token, as ``raylaunch bench prefill`` has it.

    Attributes:
        tokens: lengths of prompts.
        repeat: timed prompts of each length; the median counts.
    """

    tokens: Sizes = (128, 512, 1024)
    repeat: PositiveInt = 15


class ServeMeasure(Section):
    """Requests over HTTP, streamed, as clients of ``raylaunch serve`` see them.

    Attributes:
        concurrency: requests at a time.
        requests: how many in all, at each concurrency.
        prompt_tokens: of each, drawn at random.
        new_tokens: that each generates.
    """

    concurrency: Sizes = (1, 8, 32)
    requests: PositiveInt = 64
    prompt_tokens: PositiveInt = 128
    new_tokens: Annotated[Int, Field(ge=2)] = 64


class Measure(Section):
    """What is measured of each cell, in one launch; a name, a list of names, or each with its options."""

    launch: LaunchMeasure | None = None
    prefill: PrefillMeasure | None = None
    decode: DecodeMeasure | None = None
    serve: ServeMeasure | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if isinstance(names, list):
            names = dict.fromkeys(names)
        if not isinstance(names, Mapping) or not names:
            raise ValueError("must name what is measured: some of launch, prefill, decode, serve")
        return {name: {} if options is None else options for name, options in names.items()}


class Sweep(Section):
    """A sweep's file. Settings go by the names of a configuration, such as ``capture.enabled``, or of the command
    line's options (``tp``, ``nodes``, ``engine`` and so on).

    Attributes:
        model: as the argument of other commands: a configuration, a folder or a Hub name; None is the embedded default.
        settings: what all cells have in common.
        grid: values of each setting; every combination is a cell.
        cells: more cells, each a mapping of settings.
        exclude: cells of the grid to leave out: those with all settings of an entry.
        measure: what is measured.
        starts: launches of each cell, in rounds over all cells.
        side_by_side: cells at a time; ``auto`` is as many as the cluster has room for. None is ``auto`` if all cells
            are on GPUs, and 1 otherwise: ranks that share processors disturb each other's measurements.
        deadline: seconds that one start may take with its measurement.
        output: folder of the results, relative to the file's; None is one in the working directory, by the file's name.
    """

    model: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    cells: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    measure: Measure
    starts: PositiveInt = 3
    side_by_side: PositiveInt | Literal["auto"] | None = None
    deadline: Seconds = 1800
    output: str | None = None

    @field_validator("grid", mode="before")
    @classmethod
    def _lists(cls, grid: Any) -> Any:
        for key, values in grid.items() if isinstance(grid, Mapping) else ():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{key} must have a list of values, such as [1, 2]")
        return grid


@dataclass(frozen=True)
class Cell:
    """One configuration to launch and measure.

    Attributes:
        id: a digest of its whole configuration as it was written and of what is measured: the same while these are.
        settings: what it sets of the sweep's base, by dotted name.
        named: the value of every setting that the sweep's file names; of secrets ``***``.
        shown: those of them that are not the same in all cells.
        config: None where the settings contradict each other.
        problem: what contradicts what then.
    """

    id: str
    settings: Mapping[str, Any]
    named: Mapping[str, Any]
    shown: Mapping[str, Any]
    config: LaunchConfig | None
    problem: ConfigError | None = None


def read_sweep(text: str) -> tuple[Sweep, Path]:
    """The sweep in a file, or of the name of one that ships, and where it is. Raises :class:`ConfigError`."""
    shipped = shipped_configs() / FOLDER
    given = Path(os.path.expanduser(text))
    candidates = (given, shipped / f"{text.removesuffix('.yaml')}.yaml")
    file = next((one for one in candidates if os.path.isfile(one)), None)  # Path's own raises: see find_config
    if file is None:
        names = ", ".join(sorted(one.stem for one in shipped.glob("*.yaml")))
        raise ConfigError("FILE", text, f"no such file; sweeps that ship: {names}")
    data = read_yaml(file)
    check_encoding(data, str(file))
    try:
        return Sweep.model_validate(data), file
    except ValidationError as error:
        raise explain(error, Sweep, str(file)) from None


def base_of(sweep: Sweep, file: Path) -> LaunchConfig:
    """What all cells have in common; what was chosen for a model alone is said. Raises :class:`ConfigError`."""
    from raylaunch.terminal.configuration import configuration_of

    beside = file.parent / os.path.expanduser(sweep.model or "")
    config, chosen = configuration_of(str(beside) if sweep.model and os.path.exists(beside) else sweep.model, (), ())
    if chosen:
        typer.echo(chosen, err=True)
    settings = _absolute(_flat(sweep.settings), file.parent)
    _require_known(config, "settings", settings, str(file))
    return config.replace({"serve.api_key": None, **settings})


def cells_of(sweep: Sweep, base: LaunchConfig, file: Path) -> list[Cell]:
    """The cells, each once: those of the grid, then the others. One that no configuration can be made of says why.

    Raises:
        ConfigError: a key that no setting has, or an entry of ``exclude`` that excludes nothing.
    """
    source = str(file)
    products = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    grid = [_flat(one) for one in products] if sweep.grid or not sweep.cells else []
    rules = [_flat(rule) for rule in sweep.exclude]
    for number, rule in enumerate(rules):
        _require_known(base, f"exclude.{number}", rule, source)
        if not any(_matches(one, rule) for one in grid):
            raise ConfigError(f"exclude.{number}", rule, "no cell of the grid has these settings", source)
    more = [_flat(one) for one in sweep.cells]
    for where, group in [("grid", grid), *((f"cells.{number}", [one]) for number, one in enumerate(more))]:
        _require_known(base, where, {key: value for one in group for key, value in one.items()}, source)
    kept = [one for one in grid if not any(_matches(one, rule) for rule in rules)]
    asked = [_absolute(one, file.parent) for one in [*kept, *more]]
    whole = base.model_dump(mode="json", by_alias=True)
    keys = list(_keys([_flat(sweep.settings), *asked]))
    values = [{key: one.get(key, value_or_none(whole, key)) for key in keys} for one in asked]
    varying = [key for key in keys if any(one[key] != values[0][key] for one in values)]
    measure = sweep.measure.model_dump(mode="json", exclude_none=True)
    cells: dict[str, Cell] = {}
    for settings, every in zip(asked, values, strict=True):
        named = {key: masked(key, value) for key, value in every.items()}
        cell = _cell(base, settings, named, {key: named[key] for key in varying}, measure)
        cells.setdefault(cell.id, cell)
    return list(cells.values())


def _cell(
    base: LaunchConfig,
    settings: dict[str, Any],
    named: dict[str, Any],
    shown: dict[str, Any],
    measure: Mapping[str, Any],
) -> Cell:
    written = base.model_dump(mode="json", by_alias=True, exclude_unset=True)
    written = changed(written, [*settings.items(), *((key, None) for key in NO_PART_OF_A_CELL)])
    text = json.dumps([written, measure], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]
    try:
        return Cell(digest, settings, named, shown, base.replace(settings))
    except ConfigError as error:
        return Cell(digest, settings, named, shown, None, error)


def value_or_none(data: Any, key: str) -> Any:
    """The value of a dotted name; None where there is nothing of that name, such as an argument of SGLang's."""
    try:
        return value_at(data, key)
    except AttributeError:
        return None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, whether they were written so, as sections within each other, or as an option."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            result |= _flat(value, f"{key}.")
        else:
            result[SETTINGS.get(key, current_name(key))] = value
    return result


def _absolute(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings with paths of the file made absolute."""
    made = relative_to_file(changed({}, settings.items()), folder)
    return {key: value_at(made, key) for key in settings}


def _matches(settings: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(key in settings and settings[key] == value for key, value in rule.items())


def _keys(settings: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield from dict.fromkeys(key for one in settings for key in one)


def _require_known(base: LaunchConfig, where: str, settings: Mapping[str, Any], source: str) -> None:
    for key, value in settings.items():
        if key == "placement.address" and where != "settings":
            raise ConfigError(f"{where}.{key}", value, "all cells run in one cluster: set it under settings", source)
        try:
            base.replace({key: value})
        except UnknownKey as error:
            raise ConfigError(f"{where}.{key}", value, error.expected, source) from None
        except ConfigError:
            continue  # of one cell, or of none together with others
