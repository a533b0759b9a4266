"""The page in a real browser: it draws, complains of nothing, asks nobody for anything and fits a phone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from analysis_studies import point, run, small_study, with_histograms, write
from page_walk import click_legend, look_at_figures, open_page, point_at, sort_tables

from sparsebench.analysis.page import write_page
from sparsebench.analysis.paper import paper_figures, write_paper_page

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "runs" / "quickstart" / "report.html"
COMMITTED = sorted(ROOT.glob("results/*/report.html"))
HOSTILE = "</script><img src=x onerror='window.broken = 1'>"


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("THE PAGE WAS NOT TRIED IN A BROWSER: there is no chromium on the PATH (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.skip("THE PAGE WAS NOT TRIED IN A BROWSER: playwright is missing (pip install playwright)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    records = [with_histograms(record) for record in small_study()]
    records += [run(f"idea {HOSTILE}", {"trick": f"{HOSTILE}{n}"}, 0, point(0.9, 80.0 + n, 81.0)) for n in range(2)]
    directory = write(tmp_path_factory.mktemp("study"), records, [0.8, 0.9, 0.98], note=HOSTILE)
    return write_page(directory)


@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (1280, 800, "light")])
def test_the_page_works_offline(browser, report, width, height, scheme):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("#plot-trade-off .scatterlayer .trace")
    for figure in page.locator(".plot").all():  # the others are drawn when they come near the screen
        figure.scroll_into_view_if_needed()
        figure.locator(".scatterlayer .trace").first.wait_for(state="attached")

    # The dense level, its band and its points, and a line and its points for each of four methods.
    assert page.locator("#plot-trade-off .scatterlayer .trace").count() == 11
    assert page.locator("#plot-trade-off .errorbar").count() > 5
    assert page.locator("#plot-trade-off .legend .traces").count() == 5
    assert page.locator("#plot-layers .scatterlayer .trace").count() == 3
    for figure in ("#plot-trade-off", "#plot-layers"):
        box = page.locator(f"{figure} svg.main-svg").first.bounding_box()
        assert box["width"] > 0.8 * min(width - 32, 1100)
        assert box["height"] > 150
    offered = page.locator("#plot-trade-off .modebar-btn").evaluate_all("buttons => buttons.map(button => button.dataset.title)")
    assert offered
    assert not [title for title in offered if "share" in title.lower()]
    text_colour = page.evaluate("getComputedStyle(document.body).color")
    tick_colour = page.evaluate("getComputedStyle(document.querySelector('#plot-trade-off .xtick text')).fill")
    assert tick_colour == text_colour

    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def test_the_controls_do_what_they_say(browser, report):
    # Waiting for a condition evaluates a string in the page, which the page's own policy rightly forbids.
    page = browser.new_page(viewport={"width": 1280, "height": 800}, bypass_csp=True)
    page.goto(report.as_uri())
    page.locator("#plot-layers").scroll_into_view_if_needed()
    page.wait_for_selector("#plot-layers .scatterlayer .trace")

    def read(expression):
        return page.evaluate(f"document.getElementById({expression}")

    before = read("'plot-trade-off').layout.xaxis.range")
    page.get_by_role("button", name="All points").click()
    page.wait_for_function(f"document.getElementById('plot-trade-off').layout.xaxis.range[0] !== {before[0]}")
    assert page.get_by_role("button", name="All points").get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="Best values").get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="Best values").click()
    page.wait_for_function(f"document.getElementById('plot-trade-off').layout.xaxis.range[0] === {before[0]}")

    page.locator("#axis").select_option(label="non-zero weights")
    page.wait_for_function("document.getElementById('plot-trade-off').layout.xaxis.type === 'log'")
    assert read("'plot-trade-off').data[3].x")[0] > 1
    page.locator("#axis").select_option(label="sparsity")
    page.wait_for_function(f"document.getElementById('plot-trade-off').layout.xaxis.range[0] === {before[0]}")

    drawn = read("'plot-layers').data[0].x")
    page.locator("#choose-layers").select_option(label="≥ 80\N{NO-BREAK SPACE}%")
    page.wait_for_function(f"document.getElementById('plot-layers').data[0].x[0] !== {drawn[0]}")

    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "getComputedStyle(document.querySelector('#plot-layers .xtick text')).fill === getComputedStyle(document.body).color"
    )
    page.close()


def test_a_print_has_whole_figures_and_all_tables(browser, report, tmp_path):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(report.as_uri())
    page.locator("#plot-trade-off .scatterlayer .trace").first.wait_for(state="attached")
    page.evaluate(
        """() => {
            addEventListener("beforeprint", () => setTimeout(() => {
                const widths = [...document.querySelectorAll(".plot .main-svg")].map((svg) => svg.getBoundingClientRect().width);
                window.printed = {widths, closed: document.querySelectorAll("details:not([open])").length};
            }));
        }"""
    )
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    printed = page.wait_for_function("window.printed").json_value()
    assert printed["closed"] == 0
    assert max(printed["widths"]) <= 700
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function("document.querySelector('#plot-trade-off .main-svg').getBoundingClientRect().width > 700")
    assert page.locator("details:not([open])").count() > 0
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    page.close()


def test_the_page_of_a_papers_figures_draws_them_all(browser, report, tmp_path):
    other = write(tmp_path / "second", small_study(), [0.8, 0.9])
    drawn = paper_figures(report.parent, "gale2019", other)
    page = browser.new_page(viewport={"width": 390, "height": 844})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(write_paper_page(drawn, "gale2019").as_uri())
    assert look_at_figures(page) == ["plot-curves", "plot-configurations", "plot-layers"]
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert complaints == []
    page.close()


def test_tables_are_sorted_by_a_click_on_their_headings(browser, report):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(report.as_uri())
    table = page.locator("table", has=page.locator("caption", has_text="at least this sparse"))

    def methods():
        return [row.split("\n")[0].split("\t")[0].strip() for row in table.locator("tbody th").all_inner_texts()]

    def values():
        texts = table.locator("tbody tr:not(.dense) td:nth-child(2)").all_inner_texts()
        return [float(text.replace("★", "").replace("highest:", "").split()[0]) for text in texts if text.strip("\u2013 ")]

    heading = table.get_by_role("button", name="≥ 80")
    heading.click()
    assert values() == sorted(values())
    assert heading.locator("..").get_attribute("aria-sort") == "ascending"
    heading.press("Enter")
    assert values() == sorted(values(), reverse=True)
    assert len(set(values())) > 2
    table.get_by_role("button", name="method").click()
    assert methods()[:-1] == sorted(methods()[:-1])
    assert methods()[-1] == "dense"
    page.close()


def test_ids_are_sorted_as_text_whatever_digits_they_begin_with(browser, tmp_path):
    directory = write(tmp_path, small_study(), [0.9])
    for name in ("9a", "12e4", "3e2", "100"):
        (directory / "runs" / name).mkdir()
        (directory / "runs" / name / "failure.txt").write_text("out of luck")
    page = browser.new_page()
    page.goto(write_page(directory).as_uri())
    table = page.locator("table", has=page.locator("caption", has_text="Failed runs"))
    table.get_by_role("button", name="run").click()
    assert table.locator("tbody th").all_inner_texts() == ["100", "12e4", "3e2", "9a"]
    page.close()


def of_thousands(path: Path) -> bool:
    """Whether a page is so full that a browser without a graphics processor takes half a minute for it."""
    return path.parent.name.startswith("gale2019")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] if of_thousands(path) else []) for path in [QUICKSTART, *COMMITTED]],
    ids=lambda path: path.parent.name,
)
def test_pages_of_real_studies_work_offline(browser, path):
    if not path.exists():
        pytest.skip("THE QUICKSTART'S PAGE WAS NOT TRIED IN A BROWSER: make it with `make quickstart`, as .ci/run does")
    complaints: list[str] = []
    page = open_page(browser, path, complaints)
    figures = look_at_figures(page)
    assert {"plot-trade-off", "plot-layers", "plot-cost-figure"} <= set(figures)
    assert "sparsity" in point_at(page, "#plot-trade-off")
    click_legend(page, "#plot-trade-off")
    close = page.get_by_role("button", name="Close to the highest")
    if close.count():  # where methods are far apart
        lowest = "document.querySelector('#plot-trade-off').layout.yaxis.range[0]"
        before = page.evaluate(lowest)
        close.click()
        page.wait_for_timeout(300)
        assert page.evaluate(lowest) > before
    assert sort_tables(page) >= 3
    assert complaints == []
    page.context.close()


def test_every_figure_is_drawn_and_answers(browser, report):
    complaints: list[str] = []
    page = open_page(browser, report, complaints)
    figures = look_at_figures(page)
    assert {"plot-trade-off", "plot-layers", "plot-distributions", "plot-sensitivity", "plot-budget"} <= set(figures)
    assert "test accuracy (%)" in point_at(page, "#plot-trade-off").replace("\N{NO-BREAK SPACE}", " ")
    assert "weights" in point_at(page, "#plot-layers")
    click_legend(page, "#plot-trade-off")
    click_legend(page, "#plot-distributions")
    assert sort_tables(page) >= 4
    assert complaints == []
    page.context.close()
