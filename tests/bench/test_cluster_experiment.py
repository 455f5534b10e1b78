"""`mesp predictor cluster` and `experts`: planted shapes come apart, noise is told as such, reports are whole and safe."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from sklearn.metrics import adjusted_rand_score  # type: ignore[import-untyped]

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench import predictor_cluster_cli
from mesp_bench.cluster_experiment import Experiment, cluster_experiment
from mesp_bench.cluster_plots import centroids_figure, experts_figure, silhouette_figure
from mesp_bench.cluster_report import (
    cluster_sentence,
    experts_sentence,
    experts_table,
    print_clusters,
    print_experts,
    read_experts,
    write_cluster_report,
    write_experts_report,
)
from mesp_bench.plots import figure_bytes
from mesp_bench.report import json_text
from mesp_bench.traces.convert import Format, convert_trace
from mesp_bench.traces.model import Trace

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

DAY = 1_440


def made_trace(counts: npt.NDArray[np.number]) -> Trace:
    functions = len(counts)
    return Trace(
        name="made",
        functions=tuple(FunctionKey("o", f"a/{f}") for f in range(functions)),
        counts=counts.astype(np.uint32),
        start_minute=0,
        apps=("o/a",) * functions,
        triggers=("http",) * functions,
        memory_mb=np.full(functions, 128.0),
        app_memory_mb=np.full(functions, 640.0),
        duration_ms=np.full(functions, 500.0),
        duration_percentiles_ms=np.full((functions, 7), np.nan),
        arrivals_s=None,
        checksum="made",
    )


def planted() -> tuple[Trace, npt.NDArray[np.int64]]:
    """A plateau, a peak and a comb, moved and scaled, 18, 12 and 6 of them; then two dead, one constant, one young."""
    rng = np.random.default_rng(1)
    minute = np.arange(DAY)
    plateau, peak = 20.0 * (abs(minute - 700) < 240), 60 * np.exp(-0.5 * ((minute - 700) / 40) ** 2)
    comb = 30.0 * (minute % 240 < 60)
    truth = np.repeat([0, 1, 2], [18, 12, 6])
    shapes = np.stack([plateau, peak, comb])[truth]
    moved = [rng.poisson(np.roll(shape, rng.integers(-90, 90)) * rng.uniform(1, 9)) for shape in shapes]
    away = np.zeros((4, DAY))
    away[2] = 5
    away[3, 1_200:] = rng.poisson(9, 240)
    return made_trace(np.concatenate([moved, away])), truth


def experiment_of(trace: Trace, ks: range) -> Experiment:
    return cluster_experiment(trace, ks, lambda _share: None, engine="batched", bin_minutes=30)


@pytest.fixture(scope="module")
def found() -> Experiment:
    return experiment_of(planted()[0], range(2, 6))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with empty pictures, for tests of the rest."""
    monkeypatch.setattr("mesp_bench.cluster_report.centroids_figure", lambda *_, **__: None)
    monkeypatch.setattr("mesp_bench.cluster_report.figure_bytes", lambda *_: b"<svg/>")


def test_planted_shapes_come_apart(found: Experiment) -> None:
    """K, the members and the reasons for being in no cluster are what was planted, and nothing is said of weakness."""
    _, truth = planted()
    result = found.result
    labels = [days[0] for days in result["functions"].values()]
    assert result["k"] == 3
    assert adjusted_rand_score(truth, labels[:36]) == 1
    assert labels[36:] == ["dead", "dead", "constant", "young"]
    assert result["routed_away"] == {"dead": 2, "young": 1, "constant": 1}
    assert list(result["silhouette"]) == [2, 3, 4, 5]
    assert "separate (silhouette" in cluster_sentence(result)
    assert not any("hardly" in note for note in result["notes"])


def test_clusters_are_numbered_by_size(found: Experiment) -> None:
    """The largest cluster is 0, and sizes, labels and what is told of each cluster agree."""
    assert found.result["sizes"].tolist() == [18, 12, 6] == [about["size"] for about in found.result["clusters"]]
    assert np.bincount(found.clusters.labels).tolist() == [18, 12, 6]
    assert found.result["clusters"][2]["active_bins_pct"] < found.result["clusters"][0]["active_bins_pct"] + 50
    assert all(about["distance_median"] < 0.3 for about in found.result["clusters"])


def test_noise_is_told_as_such() -> None:
    """Series without any shape in common are clustered as asked, with the warning that shapes hardly separate."""
    noise = np.random.default_rng(2).poisson(3, (40, DAY))
    result = experiment_of(made_trace(noise), range(2, 4)).result
    assert max(result["silhouette"].values()) < 0.25
    assert any("hardly separate" in note for note in result["notes"])
    assert "hardly separate" in cluster_sentence(result)


def test_what_else_a_reader_must_know_is_noted() -> None:
    """A best K at the end of the range, fewer shapes than asked, and a single day are told; two days are not."""
    trace, _ = planted()
    edge = experiment_of(trace, range(2, 4)).result["notes"]
    assert any("largest that was tried, 3" in note for note in edge)
    assert any("One day" in note for note in edge)
    pair = np.repeat(trace.counts[[0, 20]], 6, axis=0)
    two_days = experiment_of(made_trace(np.concatenate([pair, pair], axis=1)), range(4, 5))
    assert any("4 clusters were asked for, 2 were found" in note for note in two_days.result["notes"])
    assert not any("One day" in note for note in two_days.result["notes"])


def test_every_day_of_a_function_is_labelled() -> None:
    """A function's list has its days in order: a silent day between two alike ones is dead, not young."""
    trace, _ = planted()
    day = trace.counts
    days = experiment_of(made_trace(np.concatenate([day, 0 * day, day], axis=1)), range(3, 4)).result["functions"]
    first, second, third = days["o/a/0"]
    assert first == third != "dead" == second


def test_too_few_shapes_are_refused() -> None:
    """More clusters than function-days with a shape: one sentence with both numbers."""
    with pytest.raises(InputError, match="36 of 40 function-days have a shape, too few for 40 clusters"):
        experiment_of(planted()[0], range(2, 41))


def test_the_report_is_whole_and_needs_nothing_else(found: Experiment, tmp_path: Path) -> None:
    """Five files; strict JSON; centroids read back; a page without a script or an address."""
    write_cluster_report(found, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["centroids.png", "clusters.json", "clusters.safetensors", "report.html", "silhouette.png"]
    read = json.loads((tmp_path / "clusters.json").read_text(), parse_constant=pytest.fail)
    assert {"k", "silhouette", "sizes", "routed_away", "provenance", "notes", "functions"} <= set(read)
    kept = load_file(tmp_path / "clusters.safetensors")["centroids"]
    np.testing.assert_array_equal(kept, found.clusters.centroids)
    page = (tmp_path / "report.html").read_text()
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(addresses) == 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert not re.search(r"<script|<link|@import|url\(", page)


def test_the_same_seed_gives_the_same_result_and_picture(found: Experiment) -> None:
    """Clustered and drawn again, result and figure are byte for byte the same."""
    again = experiment_of(planted()[0], range(2, 6))
    assert json_text(again.result) == json_text(found.result)
    first, second = (figure_bytes(centroids_figure(each), "svg") for each in (found, again))
    assert first == second


def test_the_figure_has_a_panel_per_cluster_with_its_size(found: Experiment) -> None:
    """Lines and heat map for each cluster, its number and size above."""
    figure = centroids_figure(found)
    assert len(figure.axes) == 2 * found.clusters.k
    titles = [axes.get_title("right") for axes in figure.axes if axes.get_title("right")]
    assert titles == ["18 days · 50 %", "12 days · 33 %", "6 days · 17 %"]


def test_figures_survive_one_shape() -> None:
    """Copies of one function are one cluster, scored 0, and are drawn all the same."""
    one = experiment_of(made_trace(np.repeat(planted()[0].counts[:1], 8, axis=0)), range(2, 3))
    assert one.clusters.k == 1
    assert len(centroids_figure(one).axes) == 2
    assert len(silhouette_figure(one.result).axes) == 2


def printed(show: Any, what: Any) -> str:
    console = Console(width=120, file=io.StringIO(), force_terminal=False)
    show(what, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_console_shows_clusters_and_reasons(found: Experiment) -> None:
    """A row per cluster and per reason, then the sentence and the notes."""
    text = printed(print_clusters, found.result)
    assert re.search(r"cluster 0 +18 +45\.0", text)
    assert re.search(r"dead +2 +5\.0 +—", text)
    assert cluster_sentence(found.result) in text


@pytest.mark.usefixtures("undrawn")
def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a trace's folder to the folder of the report; the number of clusters may be given."""
    convert_trace(planted()[0], tmp_path / "trace", Format.PARQUET)
    batched = predictor_cluster_cli.Engine.BATCHED
    predictor_cluster_cli.cluster(
        trace=tmp_path / "trace", out=tmp_path / "out", clusters=2, k="2:16", engine=batched, bin_minutes=30, seed=0
    )
    assert json.loads((tmp_path / "out" / "clusters.json").read_text())["k"] == 2
    assert "Report:" in capsys.readouterr().out


@pytest.mark.parametrize("k", ["5:2", "1:4", "2-4", "2:65", "", "2:"])
def test_a_range_that_is_none_is_refused(k: str) -> None:
    """Backwards, too small, too large or unreadable ranges are one sentence that shows the form."""
    with pytest.raises(InputError, match=re.escape(f"--k {k}: must be FIRST:LAST")):
        predictor_cluster_cli._between(k)
    assert list(predictor_cluster_cli._between("2:4")) == [2, 3, 4]


def expert_table() -> dict[str, Any]:
    def score(mean: float, half: float) -> dict[str, Any]:
        return {"mean": mean, "ci95": [mean - half, mean + half]}

    return {
        "scores": {
            "0": {"hazard": score(0.2, 0.01), "gbm": score(0.1, 0.01), "patchtst": {"mean": None, "ci95": None}},
            "1": {"hazard": score(0.20, 0.01), "gbm": score(0.21, 0.01)},
            "none": {"hazard": {"mean": 0.0, "ci95": None}},
        },
        "selected": {"0": "gbm", "1": "hazard", "none": "hazard"},
    }


def test_the_expert_table_marks_the_selected_and_tells_what_is_clear() -> None:
    """Best first, the selected strong, unmeasured ones left out; only the choice that no interval reaches is clear."""
    rows = experts_table(expert_table()).rows
    assert [row.cells for row in rows if row.strong] == [
        ("cluster 0", "gbm", "0.1000", "0.0900 to 0.1100", "+0.0"),
        ("cluster 1", "hazard", "0.2000", "0.1900 to 0.2100", "+0.0"),
        ("no cluster", "hazard", "0.0000", "—", "—"),
    ]
    assert len(rows) == 5
    assert rows[1].cells == ("cluster 0", "hazard", "0.2000", "0.1900 to 0.2100", "+100.0")
    sentence = experts_sentence(expert_table())
    assert sentence.startswith("2 of 3 experts are the best of some cluster; for 1 of 3 clusters the choice is clear")
    assert sentence in printed(print_experts, expert_table()).replace("\n", " ")


def test_the_heat_map_has_a_cell_per_score_and_frames_the_selected() -> None:
    """Five measured cells, three frames, a dash where an expert was not measured or does not exist."""
    axes = experts_figure(expert_table()).axes[0]
    framed = [patch for patch in axes.patches if not patch.get_fill()]
    assert (len(axes.patches) - len(framed), len(framed)) == (5, 3)
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("—") == 4
    assert "0.0900 to 0.1100" in texts


def test_the_experts_command_reads_a_model_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`experts.json` becomes a picture and a page whose every value is escaped."""
    table = expert_table()
    table["scores"]["1"]["<script>"] = {"mean": 0.5, "ci95": [0.4, 0.6]}
    (tmp_path / "experts.json").write_text(json.dumps(table))
    predictor_cluster_cli.experts(model=tmp_path, out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["experts.json", "experts.png", "report.html"]
    assert json.loads((tmp_path / "out" / "experts.json").read_text()) == table
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()
    assert "Report:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not found; `mesp predictor train` writes it"),
        ("{", "not readable as JSON"),
        ("[]", "it = "),
        ('{"scores": {}, "selected": {}}', "scores = "),
        ('{"scores": {"0": {"gbm": {"mean": "low"}}}, "selected": {}}', "scores.0.gbm.mean = 'low'"),
    ],
)
def test_a_table_that_is_none_is_refused_by_key(content: str | None, said: str, tmp_path: Path) -> None:
    """A missing, unreadable or misshapen `experts.json` is one sentence with file and key."""
    if content is not None:
        (tmp_path / "experts.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'experts.json'}: {said}")):
        read_experts(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_folder_in_the_way_is_named(found: Experiment, tmp_path: Path) -> None:
    """An output that cannot be made is one sentence, for both reports."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(InputError, match="out cannot be made a folder"):
        write_cluster_report(found, tmp_path / "out")
    with pytest.raises(InputError, match="out cannot be made a folder"):
        write_experts_report(expert_table(), tmp_path / "out")
