"""What every command that launches takes: a model or a configuration, and what is changed of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from raylaunch.config import LaunchConfig

PANEL = "Launch"
SGLANG = "raylaunch.sglang"
SETTINGS = {
    "tp": "parallel.tensor_parallel_size",
    "nodes": "parallel.nodes",
    "engine": "engine.kind",
    "device": "engine.device",
    "dtype": "model.dtype",
    "max_context": "engine.max_context",
    "load_format": "model.load_format",
    "debug": "debug",
    "log_format": "log.format",
    "log_level": "log.level",
}
"""The settings that have options of their own, by the name of the attribute of :class:`Launch`."""


def _option(name: str, metavar: str, about: str, default: str = "") -> Any:
    return typer.Option(name, metavar=metavar, help=about, show_default=default or False, rich_help_panel=PANEL)


@dataclass(frozen=True)
class Launch:
    """What a command line says of a launch. Each attribute is an argument or an option of its name."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A YAML file or the name of one that ships, a model's folder, or its name on the Hub.",
            show_default="a tiny model that adds, on 2 CPU ranks",
        ),
    ] = None
    tp: Annotated[int | None, _option("--tp", "N", "Ranks, which share the model.")] = None
    nodes: Annotated[int | None, _option("--nodes", "N", "Nodes to spread them over, equally.")] = None
    engine: Annotated[
        str | None,
        _option(
            "--engine",
            "sglang|reference",
            "What runs in the ranks.",
            "of a model alone: sglang if it is installed and there are GPUs",
        ),
    ] = None
    device: Annotated[str | None, _option("--device", "auto|cpu|cuda", "What they run on.")] = None
    dtype: Annotated[str | None, _option("--dtype", "DTYPE", "auto, float32, bfloat16 or float16.")] = None
    max_context: Annotated[
        int | None, _option("--max-context", "TOKENS", "Most tokens of a prompt and its answer together.")
    ] = None
    load_format: Annotated[
        str | None, _option("--load-format", "FORMAT", "How weights are read; dummy draws random ones, and reads none.")
    ] = None
    settings: Annotated[
        list[str] | None,
        _option("--set", "KEY=VALUE", "Change a setting, such as capture.enabled=false. Repeatable."),
    ] = None
    debug: Annotated[
        str | None,
        _option(
            "--debug",
            "cuda",
            "Debug mode: a GPU writes a core dump where a kernel fails, and every kernel is waited for.",
            "off",
        ),
    ] = None
    log_format: Annotated[
        str | None, _option("--log-format", "text|json", "json: every line on standard error is one object.")
    ] = None
    log_level: Annotated[
        str | None, _option("--log-level", "LEVEL", "debug, info, warning or error, of driver and ranks.")
    ] = None
    sglang: tuple[str, ...] = ()
    """SGLang's own arguments, which follow ``--``."""

    def changes(self) -> list[str]:
        """The options as settings, those of ``--set`` last."""
        said = {key: getattr(self, name) for name, key in SETTINGS.items()}
        return [f"{key}={value}" for key, value in said.items() if value is not None] + list(self.settings or ())

    def config(self) -> LaunchConfig:
        """The configuration that the command line asks for, the embedded default without a model. What was chosen for a
        model that has no configuration is said on standard error.

        Raises:
            ConfigError: it cannot be read, or is wrong.
        """
        from raylaunch.config import LogConfig
        from raylaunch.logs import log_command
        from raylaunch.terminal.configuration import configuration_of
        from raylaunch.terminal.quiet import quiet_libraries

        quiet_libraries()
        if self.log_format == "json":
            log_command(LogConfig(format="json"))  # what is wrong with the rest is told that way too
        config, chosen = configuration_of(self.model, self.changes(), self.sglang)
        log_command(config.log)
        if chosen:
            typer.echo(chosen, err=True)
        return config


def add_command(app: typer.Typer, name: str, command: Callable[..., None]) -> None:
    """Adds a command that launches: its first parameter is a :class:`Launch`, which it gets from the options."""
    app.command(name, cls=_Launching)(_with_options(command))


class _Launching(TyperCommand):
    """What follows ``--`` is for SGLang."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- SGLANG'S ARGUMENTS]"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta[SGLANG] = tuple(args[len(own) + 1 :])
        return super().parse_args(ctx, own)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    hints = get_type_hints(Launch, include_extras=True)
    names = [field.name for field in fields(Launch) if field.name != "sglang"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    theirs = [inspect.Parameter(name, keyword, default=None, annotation=hints[name]) for name in names]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    context = inspect.Parameter("context", keyword, annotation=typer.Context)
    everything = [context, *theirs[:1], *(one.replace(kind=keyword) for one in own), *theirs[1:]]

    @functools.wraps(command)
    def run(*, context: typer.Context, **given: Any) -> None:
        launch = Launch(**{name: given.pop(name) for name in names})
        command(replace(launch, sglang=context.meta[SGLANG]), **given)

    run.__signature__ = inspect.Signature(everything)  # type: ignore[attr-defined]  # as typer reads it
    run.__annotations__ = {one.name: one.annotation for one in everything}
    return run
