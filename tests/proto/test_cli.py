"""The `mesp` command: lazy, and every failure that is no bug in one sentence with its exit code."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import structlog
import typer

import mesp
from mesp import cli
from mesp.errors import InputError, MespError, MissingExtraError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a module with one command behind `mesp demo` (the extra `all`) or another name."""

    def put(command: object, name: str = "demo") -> None:
        target = cli.SUBCOMMANDS[name].target.partition(":")
        module = ModuleType(target[0])
        setattr(module, target[2], command)
        monkeypatch.setitem(sys.modules, target[0], module)

    return put


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    return ended.value.code if isinstance(ended.value.code, int) else 0


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


def test_help_lists_every_subcommand_and_imports_none() -> None:
    """`mesp --help` names each subcommand with its line, and neither their packages nor anything heavy is imported."""
    script = (
        "import sys\nfrom mesp.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print('HEAVY', sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'mesp_bench', 'mesp_predictor', 'mesp_placement', 'mesp_plugin', 'grpc', 'numpy', 'torch'}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"COLUMNS": "160"}
    ).stdout
    for name, subcommand in cli.SUBCOMMANDS.items():
        assert any(name in line and subcommand.help in line for line in out.splitlines()), name
    assert "HEAVY []" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`mesp --version` prints the version and succeeds."""
    assert run("--version") == 0
    assert capsys.readouterr().out == f"mesp {mesp.__version__}\n"


def test_a_function_is_a_command(offer: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """A subcommand may be a function: its parameters are the options."""

    def demo(minutes: int = 1) -> None:
        typer.echo(f"{minutes} minutes")

    offer(demo)
    assert run("demo", "--minutes", "7") == 0
    assert capsys.readouterr().out == "7 minutes\n"


def test_an_app_is_a_group(offer: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """A subcommand may be a Typer app: its commands follow, and its help stands under the name in the table."""
    app = typer.Typer(help="Traces.")
    app.callback()(lambda: None)

    @app.command()
    def inspect(folder: str) -> None:
        typer.echo(f"inspecting {folder}")

    offer(app, "trace")
    assert run("trace", "inspect", "d01") == 0
    assert capsys.readouterr().out == "inspecting d01\n"
    assert run("trace", "--help") == 0
    out = capsys.readouterr().out
    assert "mesp trace" in out
    assert "--install-completion" not in out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MespError("nothing to\n do"), 1),
        (InputError("nothing to do"), 2),
        (MissingExtraError("nothing to do"), 3),
        (UnavailableError("nothing to do"), 4),
    ],
)
def test_an_error_is_a_sentence_and_a_code(
    error: MespError, code: int, offer: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of `MespError` ends the command with one line on stderr and its own code."""
    offer(raising(error))
    assert run("demo") == code
    assert capsys.readouterr() == ("", "error: nothing to do\n")


def test_a_bug_keeps_its_traceback(offer: Callable[..., None]) -> None:
    """Any other exception comes through as it is."""
    offer(raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


def test_interrupting_ends_quietly(offer: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C is exit code 130 and no traceback."""
    offer(raising(KeyboardInterrupt()))
    assert run("demo") == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "module", "wanted"),
    [
        ("demo", "numba", "'mesp[all]'"),
        ("trace", "polars.io", "'mesp[bench]'"),
        ("predictor", "torch", "'mesp[predictor]'"),
        ("placement", "yaml", "mesp"),
    ],
)
def test_a_missing_extra_is_named_when_a_command_needs_it(
    name: str, module: str, wanted: str, offer: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A third-party module missing while a command runs is one sentence that tells what to install."""
    offer(raising(ModuleNotFoundError(f"No module named {module!r}", name=module)), name)
    assert run(name) == 3
    top = module.partition(".")[0]
    assert capsys.readouterr().err == f"error: mesp {name} needs {top}, which is not installed: pip install {wanted}\n"


def test_a_missing_extra_is_named_when_the_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same sentence when already the import of the command's module needs it."""
    monkeypatch.setitem(cli.SUBCOMMANDS, "demo", cli.Subcommand("no_such_library.cli:demo", "", "all"))
    assert run("demo") == 3
    assert "mesp demo needs no_such_library, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["mesp.no_such_module:app", "mesp.errors:no_such_attribute"])
def test_our_own_broken_import_is_a_bug(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module or name missing from our own packages is never told as a missing extra."""
    monkeypatch.setitem(cli.SUBCOMMANDS, "demo", cli.Subcommand(target, "", "all"))
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        cli.main(["demo"])


def test_an_unknown_subcommand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped name is a usage error: code 2, naming it."""
    assert run("dmeo") == 2
    assert "dmeo" in capsys.readouterr().err
