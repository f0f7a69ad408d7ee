"""The benchmarks' frame: statistics, reports as JSON, comparing two, and the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import command, compare, native, picture, report, samples
from bench.program import Loop, Run
from bench.report import LEAST, Figure, Noise, Report
from dynamos_ng.cli.tables import bar
from dynamos_ng.errors import MissingTool, UsageError

MACHINE = {"processor": "one", "kernel": "6.1"}
RESULTS = Path(command.__file__).parent / "results"


def made(*figures: Figure, noise: Noise | None = None, name: str = "native-i386") -> Report:
    return Report(name, "It is so.", figures, noise or Noise(), 1.5, MACHINE, {"rounds": 3})


def test_a_spread_has_median_quartiles_and_least() -> None:
    found = samples.spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found == samples.Spread(2.0, 3.0, 4.0, 1.0)
    assert found.relative == pytest.approx(2 / 3)


def test_what_slows_whole_rounds_down_is_in_no_difference() -> None:
    quiet = samples.differences([11, 12, 11], [1, 2, 1])
    assert samples.differences([111, 12, 211], [101, 2, 201]) == quiet == [10, 10, 10]


def test_a_drift_is_seen() -> None:
    assert samples.drift([1, 1, 1, 1]) == 0
    assert samples.drift([10, 10, 11, 11]) == pytest.approx(0.1)
    assert samples.drift([11, 11, 10, 10]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("value", "target", "bound", "met"),
    [(0.5, 0.5, "most", True), (0.51, 0.5, "most", False), (3, 2.0, LEAST, True), (1, 2.0, LEAST, False),
     (1, None, "most", None)],
)  # fmt: skip
def test_a_figure_knows_whether_its_target_is_met(value: float, target: float, bound: str, met: bool) -> None:
    figure = Figure("a", value, "ns", target=target, bound=bound)
    assert figure.met() is met
    assert figure.met(quiet=False) is None


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = made(Figure("a/b", 1 / 3, "ns", "words", 0.5, low=0.1, high=0.7, least=0.2), Figure("c", 7, "times"))
    path = one.write(tmp_path)
    assert path == tmp_path / "native-i386.json"
    assert report.read(path) == one
    figures = json.loads(path.read_text())["figures"]
    assert [figure["met"] for figure in figures] == [True, None]
    assert all({"name", "value", "unit", "target", "met"} <= figure.keys() for figure in figures)


def test_a_noisy_report_meets_and_misses_nothing(tmp_path: Path) -> None:
    missed = Figure("a", 2.0, "ns", target=1.0)
    assert made(missed).missed == (missed,)
    noisy = made(missed, noise=Noise(("another one runs",), {"quartiles_apart": 0.5}))
    assert noisy.missed == ()
    path = noisy.write(tmp_path)
    assert report.read(path) == noisy
    assert json.loads(path.read_text())["figures"][0]["met"] is None


def spoilt(value: dict[str, Any], how: str) -> None:
    figure = value["figures"][0]
    if how == "met":
        figure["met"] = False
    elif how == "bound":
        figure["bound"] = "about"
    elif how == "unit":
        del figure["unit"]
    elif how == "quiet":
        value["noise"]["quiet"] = False
    elif how == "schema":
        value["schema"] = 99
    else:
        del value[how]


@pytest.mark.parametrize("how", ["met", "bound", "unit", "quiet", "schema", "machine", "figures"])
def test_a_spoilt_report_is_refused_with_its_reason(how: str, tmp_path: Path) -> None:
    path = made(Figure("a", 1.0, "ns", target=2.0)).write(tmp_path)
    value = json.loads(path.read_text())
    spoilt(value, how)
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match=f"{path.name}.*{how}"):
        report.read(path)


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("", "[]", "7", '{"schema": 1}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="not a benchmark's report"):
            report.read(path)
    with pytest.raises(UsageError, match="No such file"):
        report.read(tmp_path / "none.json")


def test_figures_differ_if_they_are_further_apart_than_each_varied() -> None:
    before = made(Figure("a", 1.0, "ns", low=0.9, high=1.1), Figure("b", 1.0, "ns", low=0.9, high=1.1))
    after = made(Figure("a", 1.05, "ns", low=1.0, high=1.2), Figure("b", 1.5, "ns", low=1.4, high=1.6))
    found = compare.pairs(before, after)
    assert [pair.apart for pair in found] == [False, True]
    assert found[1].change == pytest.approx(0.5)


def test_a_target_that_is_missed_now_is_lost() -> None:
    good, bad = Figure("a", 1.0, "ns", target=2.0), Figure("a", 3.0, "ns", target=2.0)
    assert compare.lost(made(good), made(bad)) == ["a"]
    assert compare.lost(made(bad), made(bad)) == []
    assert compare.lost(made(good), made(bad, noise=Noise(("noisy",)))) == []


def test_bench_compare_says_by_its_status_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (made(Figure("a", value, "ns", target=2.0)) for value in (1.0, 3.0))
    one, two = good.write(tmp_path / "1"), bad.write(tmp_path / "2")
    assert command.main(["compare", str(one), str(two)]) == 1
    assert command.main(["compare", str(two), str(one)]) == 0
    assert "+200.0%" in capsys.readouterr().out
    other = made(name="survey").write(tmp_path)
    with pytest.raises(UsageError, match="not one benchmark"):
        command.main(["compare", str(one), str(other)])


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(UsageError, match="no such benchmark; there are native,"):
        command.main(["natvie"])
    with pytest.raises(UsageError, match="calls: the names of benchmarks come first"):
        command.main(["--kernel", "6.1", "calls"])


def test_bars_are_as_long_as_what_they_show() -> None:
    assert bar(10, 10, 8) == "█" * 8
    assert bar(5, 10, 8) == "█" * 4
    assert bar(1, 64, 8) == "▏"
    assert bar(-1, 10, 8) == bar(0, 0, 8) == ""


def test_a_report_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    picture.show(made(Figure("x/a", 1.0, "ns", target=2.0), Figure("x/b", 4.0, "ns", target=2.0)))
    out = capsys.readouterr().out
    assert "met" in out and "missed" in out and "≤ 2" in out
    picture.show(made(Figure("x/a", 1.0, "ns", target=2.0), noise=Noise(("another one runs",))))
    out = capsys.readouterr().out
    assert "NOISY" in out and "another one runs" in out


def test_a_png_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    picture.png(made(Figure("x/a", 1.0, "ns", target=2.0)), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingTool, match=r"^--png needs matplotlib: apt install python3-matplotlib$"):
        picture.png(made(), tmp_path / "x.png")
    with pytest.raises(MissingTool):
        command.main(["survey", "--png", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir()), "it is told before anything is measured"


def run(direct: list[int], again: list[int], witness: int = 9000) -> Run:
    ticks = {Loop("direct"): direct, Loop("again"): again, native.WITNESS: [witness] * 20}
    return Run(1000, ticks, {}, {}, {}, 0.5, 3, 1.0)


def test_a_quiet_machine_is_told_from_a_noisy_one() -> None:
    steady = [1000, 1001, 1000, 1002] * 5
    assert native.noise([[run(steady, steady)]]).quiet
    loud = {
        "two copies": run(steady, [ticks + 200 for ticks in steady]),
        "quartiles": run([1000, 1200] * 10, [1000, 1200] * 10),
        "second half": run([1000] * 10 + [1100] * 10, [1000] * 10 + [1100] * 10),
    }
    for word, one in loud.items():
        assert any(word in reason for reason in native.noise([[one]]).reasons), word
        # One bad layout among three good ones is none of the machine's.
        assert native.noise([[run(steady, steady)] * 3 + [one]]).quiet


def test_runs_that_others_disturb_are_seen_though_a_direct_call_is_not_slower() -> None:
    steady = [1000, 1001, 1000, 1002] * 5
    fine, slow = run(steady, steady), run(steady, steady, 12000)
    # A layout that is always slower is itself so.
    assert native.noise([[fine, slow], [fine, slow], [fine, slow]]).quiet
    found = native.noise([[fine, fine], [fine, slow], [fine, fine]])
    assert found.quiet
    assert found.measured["disturbed"] == pytest.approx(1 / 6)
    assert "33% of the runs" in native.noise([[fine, fine], [fine, slow], [slow, fine]]).reasons[0]


def test_the_kept_results_are_whole_and_quiet() -> None:
    found = [report.read(path) for path in sorted(RESULTS.glob("*.json"))]
    assert {one.benchmark for one in found} >= {"native-x86_64", "native-i386"}
    for one in found:
        assert one.noise.quiet
        assert one.machine["processor"]
        assert len({figure.name for figure in one.figures}) == len(one.figures)
