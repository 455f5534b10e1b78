"""README, docs and help texts say what the code does: commands, settings, metrics, exit codes, links, targets, calls."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import json_format
from typer.main import get_command

from mesp import cli, errors
from mesp.v1 import placement_service_pb2, predictor_service_pb2
from mesp_placement.config import PlacementConfig
from mesp_placement.service import decide
from mesp_plugin.config import LoopConfig
from mesp_plugin.metrics import LoopMetrics
from mesp_predictor.metrics import PredictorMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATION = (ROOT / "docs" / "operation.md").read_text()
WIRE = (ROOT / "docs" / "wire.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines_of_shell() -> list[str]:
    return [line for page in PAGES for block in blocks(page.read_text(), "sh") for line in block.splitlines()]


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Commands without subcommands, with what is typed to reach them."""
    inner = getattr(command, "commands", None)
    if not inner:
        yield path, command
    for name, subcommand in (inner or {}).items():
        yield from leaves(subcommand, f"{path} {name}")


def all_leaves() -> dict[str, Any]:
    found = (leaves(cli._load(name), f"mesp {name}") for name in cli.SUBCOMMANDS)
    return dict(pair for pairs in found for pair in pairs)


def parse(line: str) -> None:
    """Parses a command line as `mesp` would, down to the last option, and runs nothing; raises for a wrong one."""
    group: Any = get_command(cli.app)
    words = shlex.split(line, comments=True)
    context = group.make_context("mesp", words[1:])
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    while getattr(command, "commands", None):
        context = command.make_context(name, rest, parent=context)
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context(name, rest, parent=context)


COMMANDS = sorted({line for line in lines_of_shell() if line.startswith("mesp ")})


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_pages_parses(line: str) -> None:
    """Each example command is one that `mesp` takes, options and values included."""
    parse(line)


def test_a_wrong_command_does_not_parse() -> None:
    """An option that does not exist, a value out of range, a subcommand that is none: each is seen."""
    for line in ("mesp demo --no-such", "mesp placement serve --port 70000", "mesp trace inspekt x", "mesp nothing"):
        with pytest.raises(Exception, match=r"[Nn]o such (option|command)|65535"):
            parse(line)


@pytest.mark.parametrize("name", all_leaves())
def test_help_teaches_with_an_example(name: str) -> None:
    """Each command's help ends with an example of that very command, which parses."""
    example = re.search(r"Example: (?:\[bold\])?(.*?)(?:\[/bold\])?\s*$", all_leaves()[name].help or "")
    assert example, name
    assert example[1].startswith(name)
    parse(example[1])


def test_commands_named_in_the_text_exist() -> None:
    """`mesp something` in running text is a command, or a group of them."""
    known = {" ".join(name.split()[:depth]) for name in all_leaves() for depth in (2, 3)}
    for page in PAGES:
        for words in re.findall(r"`(mesp(?: [a-z]+)+)", page.read_text()):
            assert " ".join(words.split()[:3]) in known, f"{page.name}: {words}"


def test_targets_of_make_exist() -> None:
    """`make something` names a target of the Makefile."""
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE)
        assert set(named) <= targets, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files that are there, and headings of their pages."""
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_paths_named_in_the_text_exist() -> None:
    """A file or folder of the repository named in backticks is there, or a pattern that finds some."""
    for page in PAGES:
        for path in re.findall(r"`((?:tests|proto|deploy|integration|\.ci)/[^` ]*)`", page.read_text()):
            assert any(ROOT.glob(path.rstrip("/"))), f"{page.name}: {path}"


@pytest.mark.parametrize("registry", [LoopMetrics().registry, PredictorMetrics().registry], ids=["loop", "predictor"])
def test_every_metric_is_told(registry: CollectorRegistry) -> None:
    """The operator's page names every metric of MESP as Prometheus sees it, and none that is not there."""
    families = [family for family in registry.collect() if family.name.startswith("mesp_")]
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    prefix = next(iter(exposed)).rsplit("mesp_", 1)[1].partition("_")[0]
    assert set(re.findall(rf"`(mesp_{prefix}_\w+)`", OPERATION)) == exposed


def test_every_setting_is_told() -> None:
    """The operator's page names every setting of decision and loop, and every option of the sidecar."""
    rows = set(re.findall(r"^\| `([\w-]+)` \|", OPERATION, re.MULTILINE))
    settings = set(PlacementConfig.model_fields) | set(LoopConfig.model_fields) - {"placement"}
    serve = all_leaves()["mesp predictor serve"]
    options = {option for parameter in serve.params for option in parameter.opts if option != "--help"}
    metrics = {row for row in rows if row.startswith("mesp_")}
    assert rows - metrics == settings | options


@pytest.mark.parametrize("model", [PlacementConfig, LoopConfig])
def test_defaults_are_as_told(model: type[PlacementConfig | LoopConfig]) -> None:
    """The default in a setting's row is the setting's default; the price's is the one that decides."""
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", OPERATION, re.MULTILINE))
    values = model().model_dump() | ({"cold_start_price_gb_s": 80.5} if model is PlacementConfig else {})
    for name in set(values) - {"placement"}:
        value = values[name]
        shown = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        assert told[name] == shown, name


def test_exit_codes_are_told() -> None:
    """Every error's exit code has its row, beside those of success and interruption."""
    kinds: list[type[errors.MespError]] = [errors.MespError, *errors.MespError.__subclasses__()]
    codes = {kind.exit_code for kind in kinds if kind.__module__ == "mesp.errors"} | {0, 130}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", OPERATION, re.MULTILINE)} == codes


def test_every_call_is_told() -> None:
    """The wire's page names every call of both services."""
    services = [*predictor_service_pb2.DESCRIPTOR.services_by_name.values()]
    services += placement_service_pb2.DESCRIPTOR.services_by_name.values()
    for service in services:
        for method in service.methods:
            assert f"| `{method.name}` |" in WIRE, method.full_name


def test_the_plan_by_hand_works() -> None:
    """The request on the wire's page gives the prewarm that the page tells, with that reason."""
    (text,), (reason,) = blocks(WIRE, "json"), blocks(WIRE, "text")
    answer = decide(json_format.Parse(text, placement_service_pb2.PlanRequest()), PlacementConfig())
    assert [(item.node, item.count, item.reason) for item in answer.prewarms] == [("node0", 1, reason.strip())]
    assert not answer.errors


def test_the_client_on_the_page_is_python() -> None:
    """The Python on the wire's page compiles, and what it imports is there."""
    (text,) = blocks(WIRE, "python")
    imports = "\n".join(line for line in text.splitlines() if line.startswith(("import ", "from ")))
    exec(compile(imports, "docs/wire.md", "exec"), {})
    compile(text, "docs/wire.md", "exec")
