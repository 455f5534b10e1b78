"""The `mesp` command: one group whose subcommands live in the other packages and are loaded when called.

The table below is all that `mesp --help` reads, so help is instant and works without any extra installed. A
subcommand's module is imported when it is about to run, and a third-party module missing then is answered by one
sentence that names the extra. `main` is the one place where a `MespError` becomes ``error: <sentence>`` and an exit
code; every other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as build_command

import mesp
from mesp.errors import MespError, MissingExtraError
from mesp.logs import LogLevel, configure_logs

if TYPE_CHECKING:
    from collections.abc import Sequence

_OWN_PACKAGES: Final = frozenset({"mesp", "mesp_bench", "mesp_placement", "mesp_plugin", "mesp_predictor"})


@dataclass(frozen=True, slots=True)
class Subcommand:
    """Where a subcommand lives (``module:attribute``, a Typer app or a function), what it is for, and its extra."""

    target: str
    help: str
    extra: str | None = None


SUBCOMMANDS: Final = {
    "demo": Subcommand("mesp_bench.cli:demo", "Show the whole loop on a trace in minutes: MESP beside today's.", "all"),
    "evaluate": Subcommand("mesp_bench.cli:evaluate", "Measure policies and forecasts on a trace.", "all"),
    "bench": Subcommand("mesp_bench.bench_cli:app", "Measure speed and memory on this machine.", "all"),
    "trace": Subcommand("mesp_bench.traces.cli:app", "Inspect, convert and make traces of invocations.", "bench"),
    "replay": Subcommand("mesp_bench.replay.cli:app", "Replay a trace against a live platform.", "all"),
    "predictor": Subcommand(
        "mesp_bench.predictor_cli:app", "Train the forecasting model, and serve forecasts.", "predictor"
    ),
    "plugin": Subcommand("mesp_plugin.cli:app", "Run MESP beside a platform: OpenWhisk.", "openwhisk"),
    "placement": Subcommand("mesp_placement.cli:app", "Decide how many containers are warm, and where."),
}


class LazyGroup(TyperGroup):
    """Lists subcommands from the table, and imports one only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (the group's interface)
        """Names in the table's order."""
        return list(SUBCOMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 (the group's interface)
        """A stand-in that knows its name and help, which is all that a listing needs."""
        subcommand = SUBCOMMANDS.get(cmd_name)
        return TyperCommand(cmd_name, help=subcommand.help) if subcommand else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command, imported now, and its arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        ctx.invoked_subcommand = name  # `invoke` names it when the import fails
        return name, _load(cast("str", name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Runs the subcommand; a module of its extra may be missing at once or on the way."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if not module or module in _OWN_PACKAGES:  # a bug
                raise
            name = ctx.invoked_subcommand
            extra = SUBCOMMANDS[name].extra
            wanted = f"'mesp[{extra}]'" if extra else "mesp"
            raise MissingExtraError(
                f"mesp {name} needs {module}, which is not installed: pip install {wanted}"
            ) from error


def _load(name: str) -> Any:
    """The command behind a name, whether its module offers a Typer app or a function."""
    module, _, attribute = SUBCOMMANDS[name].target.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    group = typer.Typer(add_completion=False)
    group.callback()(lambda: None)
    if isinstance(target, typer.Typer):
        group.add_typer(target, name=name)
    else:
        group.command(name)(target)
    return cast("TyperGroup", build_command(group)).commands[name]


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show local values
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"mesp {mesp.__version__}")
        raise typer.Exit


@app.callback()
def _mesp(
    log_level: Annotated[LogLevel, typer.Option(help="Log events of this level and above, on stderr.")] = "info",
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Prewarm serverless functions before they are called.

    Example: mesp demo
    """
    configure_logs(log_level)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits: 0, or the error's code; Typer itself ends Ctrl-C with 130."""
    try:
        app(args, prog_name="mesp")
    except MespError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # noqa: T201 (the command's own voice)
        sys.exit(error.exit_code)
    sys.exit(0)
