"""Figures as PDF and SVG, and the counterparts of a paper's figures."""

from __future__ import annotations

import builtins
import re

import plotly.graph_objects as go
import pytest
from analysis_studies import layers, point, run, small_study, write
from page_reader import Page

from sparsebench.analysis.frontiers import find_frontiers
from sparsebench.analysis.palette import BUILT_IN, style
from sparsebench.analysis.paper import paper_figures, write_paper_page
from sparsebench.analysis.print_figures import print_figures
from sparsebench.analysis.study_data import load_study
from sparsebench.analysis.study_figures import study_figures
from sparsebench.cli import app
from sparsebench.errors import SparsebenchError
from sparsebench.records.query import query

RESNET = "imagenet/resnet50"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write(tmp_path_factory.mktemp("study"), small_study(), [0.8, 0.9])


def test_every_figure_of_the_page_is_written_as_pdf_and_svg(study, tmp_path):
    data = load_study(study)
    named = study_figures(data, find_frontiers(data)).named()
    assert {"trade-off sparsity", "trade-off weights", "sensitivity magnitude: begin"} <= set(named)
    chosen = {name: named[name] for name in list(named)[:3]} | {
        "sensitivity magnitude: begin": named["sensitivity magnitude: begin"]
    }
    written = print_figures(chosen, tmp_path / "figures")
    assert len(written) == 2 * len(chosen)
    assert all(path.read_bytes().startswith(b"%PDF") for path in written if path.suffix == ".pdf")
    svg = (tmp_path / "figures" / "trade-off-sparsity.svg").read_text()
    for method in ("magnitude", "random", "variational-dropout"):
        assert f">{method}<" in svg
        assert style(method).colour in svg
    again = print_figures(chosen, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]


def test_marks_stand_where_the_data_says(tmp_path):
    figure = go.Figure(
        go.Scatter(x=[1.0, 2.0], y=[10.0, 20.0], mode="markers", name="a $ b", marker={"color": "#123456", "symbol": "square"})
    )
    figure.update_layout(
        xaxis={"range": [0.0, 4.0], "title": {"text": "x"}}, yaxis={"range": [0.0, 40.0], "title": {"text": "y"}}
    )
    svg = print_figures({"marks": figure}, tmp_path)[1].read_text()
    uses = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*fill: #123456', svg)][:2]
    frame = re.search(r'id="patch_2">\s*<path d="M ([\d.]+) ([\d.]+)\s*L ([\d.]+) [\d.]+\s*L [\d.]+ ([\d.]+)', svg)
    left, bottom, right, top = map(float, frame.groups())
    shares = [((x - left) / (right - left), (bottom - y) / (bottom - top)) for x, y in uses]
    assert shares == [pytest.approx((0.25, 0.25), abs=1e-3), pytest.approx((0.5, 0.5), abs=1e-3)]
    assert "a $ b" in svg


def test_every_look_can_be_printed(tmp_path):
    looks = [*BUILT_IN.values(), *(style(f"idea {number}") for number in range(200))]
    figure = go.Figure(
        [
            go.Scatter(
                x=[1], y=[1], mode="markers", name=look.symbol, marker={"symbol": f"{look.symbol}{kind}", "color": look.colour}
            )
            for look in {look.symbol: look for look in looks}.values()
            for kind in ("", "-open")
        ]
    )
    print_figures({"looks": figure.update_layout(xaxis={"range": [0, 2]}, yaxis={"range": [0, 2]})}, tmp_path)


def test_without_matplotlib_one_line_says_what_to_install(study, tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **named):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(SparsebenchError, match=r"sparsebench\[analysis\]"):
        print_figures({}, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_the_papers_figures_stand_beside_its_printed_values(tmp_path):
    records = [run("magnitude", {}, seed, point(0.9, 70.0, 71.0 + seed), workload=RESNET) for seed in range(3)]
    records += [run("rigl", {}, 0, point(0.9, 70.0, 71.0), workload=RESNET)]
    directory = write(tmp_path, records, [0.9], workload=RESNET)
    drawn = paper_figures(directory, "gale2019")
    page = Page(write_paper_page(drawn, "gale2019").read_text())
    rows = page.tables["Test accuracy (%)"][1:]
    said = query(
        directory, f"select * from published where workload = '{RESNET}' and reference = 'gale2019' and metric = 'accuracy'"
    )
    assert len(rows) == len(said)
    assert ["magnitude", "90 %", "73.91", "72.00 ± 2.48"] in rows
    curves, scatter = page.figures["panels"]["curves"][0], page.figures["panels"]["configurations"][0]
    assert {trace["name"] for trace in curves["data"] if trace.get("line", {}).get("dash") == "dot"} == {"gale2019, printed"}
    assert [trace["name"] for trace in scatter["data"]] == ["magnitude"]  # the paper has no RigL
    assert (scatter["data"][0]["x"], scatter["data"][0]["y"]) == ([90.0], [72.0])
    (masks,) = page.figures["panels"]["from-masks"]
    (lottery,) = (trace for trace in masks["data"] if trace["name"] == "gale2019: lottery-ticket, printed")
    ranges = said[said["method"] == "lottery-ticket"].sort_values("sparsity")
    assert lottery["y"] == pytest.approx(list((ranges["low"] + ranges["high"]) / 2))
    assert lottery["error_y"]["array"] == pytest.approx(list((ranges["high"] - ranges["low"]) / 2))


def test_two_folders_have_a_column_each_and_collapsed_methods_a_closer_view(tmp_path):
    records = [
        run("magnitude", {"sparsity": at}, 0, point(at, 80.0 - 10 * at, 80.0 - 10 * at), workload=RESNET) for at in (0.8, 0.9)
    ]
    records += [run("l0", {}, 0, point(0.9, 3.0, 4.0), workload=RESNET)]
    first = write(tmp_path / "first", records, [0.8, 0.9], workload=RESNET)
    ours = "imagenet/resnet-50"
    second = write(tmp_path / "second", [run("magnitude", {}, 0, point(0.9, 60.0, 1.0), workload=ours)], [0.9], workload=ours)
    drawn = paper_figures(first, "gale2019", second)
    page = Page(write_paper_page(drawn, "gale2019", tmp_path / "both.html").read_text())
    head, *rows = page.tables["Test accuracy (%)"]
    assert head == ["method", "at least", "printed", "here", "second"]
    assert ["magnitude", "90 %", "73.91", "71.00", "1.00"] in rows
    far, close = page.figures["panels"]["curves"]
    assert far["data"] == close["data"]
    assert far["layout"]["yaxis"]["range"][0] < 1.0
    assert 50.0 < close["layout"]["yaxis"]["range"][0] < 71.0 < close["layout"]["yaxis"]["range"][1]


def test_every_mark_tells_its_settings(study):
    scatter = paper_figures(study, "gale2019").named()["configurations all"]
    marks = next(trace for trace in scatter.data if trace.name == "magnitude")
    place = marks.hovertemplate.split("<br>").index("begin %{customdata[3]}") - 1
    assert sorted(row[place] for row in marks.customdata) == ["0", "0", "300", "300"]
    assert {"dense", "magnitude", "random", "variational-dropout"} == {trace.name for trace in scatter.data}


def test_a_workload_without_printed_values_and_an_unknown_paper(study, tmp_path):
    page = Page(write_paper_page(paper_figures(study, "gale2019"), "gale2019", tmp_path / "own.html").read_text())
    assert "The paper prints no values for this workload" in page.text
    assert page.figures["panels"]["layers"]
    with pytest.raises(SparsebenchError, match="'gale2020': expected one of gale2019"):
        paper_figures(study, "gale2020")


def test_the_command_draws_a_papers_figures(study, tmp_path, capsys):
    app(
        ["report", str(study), "--paper", "gale2019", "--out", str(tmp_path / "p.html"), "--figures", str(tmp_path / "f")],
        standalone_mode=False,
    )
    assert (tmp_path / "p.html").exists()
    assert {path.name for path in (tmp_path / "f").iterdir()} >= {
        "curves-trade-off.pdf",
        "configurations-all.svg",
        "layers-80.pdf",
    }
    assert "figures:" in capsys.readouterr().out


def test_a_second_folder_is_drawn_beside_the_first(study, tmp_path):
    tickets = [run("lottery-ticket", {}, 0, point(0.9, 60.0, 61.0))]
    other = write(tmp_path / "other", [run("l0", {}, 0, point(0.9, 70.0, 71.0, layers=layers(0.9, 0.9))), *tickets], [0.9])
    drawn = paper_figures(study, "gale2019", other)
    curves, scatter = (panel.figures[name] for panel, name in zip(drawn.panels, ("trade-off", "all"), strict=False))
    line = next(trace for trace in curves.data if trace.name == "l0, other")
    assert (line.line.dash, list(line.y)) == ("dash", [71.0])
    marks = next(trace for trace in scatter.data if trace.name == "l0, other")
    assert (marks.marker.symbol, list(marks.x)) == ("triangle-down-open", [90.0])
    named = drawn.named()
    assert {"layers ≥ 90\N{NO-BREAK SPACE}%", "layers ≥ 90\N{NO-BREAK SPACE}%, other"} <= set(named)
    (ticket,) = (trace for trace in named["from-masks masks, other"].data if trace.name == "lottery-ticket")
    assert list(ticket.y) == [61.0]
    page = Page(write_paper_page(drawn, "gale2019", tmp_path / "both.html").read_text())
    assert "The paper prints no values" in page.text
    elsewhere = write(tmp_path / "elsewhere", [run("l0", {}, 0, point(0.9, 70.0, 71.0), workload=RESNET)], [0.9], workload=RESNET)
    with pytest.raises(SparsebenchError, match=r"its workload is imagenet/resnet50, that of .* is digits"):
        paper_figures(study, "gale2019", elsewhere)
    with pytest.raises(SparsebenchError, match="--beside goes with --paper"):
        app(["report", str(study), "--beside", str(other)], standalone_mode=False)
