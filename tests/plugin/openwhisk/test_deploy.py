"""What stands in deploy/: it fits the program. That the images build and start no test says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.main import get_command

from mesp.cli import app
from mesp.config import load_config
from mesp_plugin.metrics import LoopMetrics, OpenWhiskMetrics
from mesp_plugin.openwhisk.config import OpenWhiskConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[3]
OPENWHISK = ROOT / "deploy" / "openwhisk"
#: ${NAME:-default} and ${NAME:?what is missing}, as Compose reads them.
VARIABLE = re.compile(r"\$\{(\w+):([-?])([^}]*)\}")


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((OPENWHISK / "compose.yaml").read_text())
    return content


def filled(text: str, **said: str) -> str:
    """As Compose fills in variables; `KeyError` for one that must be set."""
    return VARIABLE.sub(lambda found: said[found[1]] if found[2] == "?" else said.get(found[1], found[3]), text)


def exposed() -> dict[str, str]:
    """Family by sample, of all that the plugin's page shows."""
    metrics = LoopMetrics()
    OpenWhiskMetrics(metrics.registry)
    return {sample.name: family.name for family in metrics.registry.collect() for sample in family.samples}


def named(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """The metrics that its panels ask for."""
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield from re.findall(r"\b(?:mesp|process)_\w+", target["expr"])


def check_command(arguments: list[str]) -> None:
    """Reads a command line down to its last option, and runs nothing; click's error where that cannot be."""
    command: Any = get_command(app)
    context: Any = None
    while hasattr(command, "resolve_command"):
        context = command.make_context("mesp", list(arguments), parent=context)
        _, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    command.make_context("mesp", list(arguments), parent=context)


def test_the_dashboard_asks_for_what_the_plugin_shows() -> None:
    """No panel is empty for a misspelt name, and no metric of MESP's is left out."""
    dashboard = json.loads((OPENWHISK / "dashboard.json").read_text())
    families = exposed()
    asked = set(named(dashboard))
    assert asked <= families.keys()
    shown = {families[name] for name in asked}
    assert {name for name in families.values() if name.startswith("mesp_")} == {
        name for name in shown if name.startswith("mesp_")
    }
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_commands_of_compose_are_ours(compose: dict[str, Any]) -> None:
    """Each service of our image says a command that the command line takes, with a configuration that it is given."""
    ours = {name: one for name, one in compose["services"].items() if one["image"] == "mesp"}
    assert ours.keys() == {"predictor", "plugin"}
    for service in ours.values():
        check_command(service["command"])
        assert (OPENWHISK / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    command = compose["services"]["plugin"]["command"]
    assert command[command.index("--config") + 1] == compose["services"]["plugin"]["configs"][0]["target"]


def test_a_command_that_is_not_ours_is_noticed() -> None:
    """The check above can fail."""
    for wrong in (["plugin", "openwhisk", "runs"], ["predictor", "serve", "--ports", "1"], ["predictor", "serve", "x"]):
        with pytest.raises(Exception, match=r"No such|unexpected"):
            check_command(wrong)


def test_compose_configures_the_plugin_as_its_parts_expect(compose: dict[str, Any], tmp_path: Path) -> None:
    """By default it watches OpenWhisk on this host; its predictor, its page and its state are where others look."""
    text = compose["configs"]["plugin"]["content"]
    path = tmp_path / "plugin.yaml"
    path.write_text(filled(text))
    config = load_config(path, OpenWhiskConfig)
    assert (config.api_host, config.mode) == (OpenWhiskConfig().api_host, "shadow")
    serve = compose["services"]["predictor"]["command"]
    assert config.loop.predictor_address == f"127.0.0.1:{serve[serve.index('--port') + 1]}"
    targets = yaml.safe_load(compose["configs"]["prometheus"]["content"])["scrape_configs"][0]["static_configs"][0]
    pages = (config.loop.metrics_port, int(serve[serve.index("--metrics-port") + 1]))
    assert targets["targets"] == [f"127.0.0.1:{port}" for port in pages]
    for name, file in (("plugin", str(config.state_file)), ("predictor", serve[serve.index("--state") + 1])):
        assert file.startswith(compose["services"][name]["volumes"][0].partition(":")[2] + "/")
    path.write_text(filled(text, MESP_OPENWHISK_API="https://wsk:443", MESP_MODE="on"))
    given = load_config(path, OpenWhiskConfig)
    assert (given.api_host, given.mode) == ("https://wsk:443", "on")


def test_compose_wants_a_key_and_names_what_it_uses(compose: dict[str, Any]) -> None:
    """Without the API key nothing starts; every configuration, volume and file that a service names is there."""
    key = compose["services"]["plugin"]["environment"]["MESP_OPENWHISK_AUTH"]
    with pytest.raises(KeyError):
        filled(key)
    assert filled(key, MESP_OPENWHISK_AUTH="u:k") == "u:k"
    for service in compose["services"].values():
        assert {one["source"] for one in service.get("configs", ())} <= compose["configs"].keys()
        for place in service.get("volumes", ()):
            source = place.partition(":")[0]
            assert (OPENWHISK / source).is_file() if source.startswith(".") else source in compose["volumes"]
    for config in compose["configs"].values():
        assert yaml.safe_load(filled(config["content"]))


def test_the_image_is_built_from_what_is_there() -> None:
    """Each path that the build sees exists, and the wheel's packages are among them."""
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert all((ROOT / path).exists() for path in kept)
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"\[tool\.hatch\.build\.targets\.wheel\]\npackages = \[(.*?)\]", project, re.DOTALL)
    assert packages is not None
    assert {path.partition("/")[0] for path in re.findall(r'"(.*?)"', packages[1])} <= set(kept)
