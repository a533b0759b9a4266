"""What a reader does with a page in a browser: looks at every figure, points at marks, clicks legends and headings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DRAWN = """async element => {
    const choice = document.querySelector(`select[data-panel="${element.dataset.panel}"]`);
    const inked = () => [...element.querySelectorAll('.trace .points path, .trace .js-line, .trace .js-fill, .hm image')]
        .filter(one => one.tagName === 'image' || (one.getAttribute('d') || '').length > 3).length;
    const found = [];
    for (const option of choice ? choice.options : [null]) {
        if (option) {
            const drawn = new Promise(resolve => element.once('plotly_relayout', resolve));  // the last step of drawing: colours
            choice.value = option.value;
            choice.dispatchEvent(new Event('change'));
            await drawn;
        }
        found.push({option: option && option.text, traces: element.data.length, inked: inked()});
    }
    return found;
}"""


def open_page(browser: Any, path: Path, complaints: list[str], **context: Any) -> Any:
    """Open a page without a network, and keep what it complains of."""
    page = browser.new_context(offline=True, **({"viewport": {"width": 1280, "height": 800}} | context)).new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    return page


def look_at_figures(page: Any) -> list[str]:
    """Scroll to every figure and see that it is drawn; also each that a list offers in its place.

    Returns:
        The ids of the figures.
    """
    found = []
    for figure in page.locator(".plot").all():
        figure.scroll_into_view_if_needed()
        name = figure.get_attribute("id")
        figure.locator(".trace, .hm").first.wait_for(state="attached")
        for drawn in figure.evaluate(DRAWN):
            assert drawn["traces"] > 0, (name, drawn["option"])
            assert drawn["inked"] > 0, (name, drawn["option"])
        found.append(name)
    return found


def point_at(page: Any, figure: str, mark: str = ".trace .points path") -> str:
    """Point at a mark of a figure with the mouse.

    Returns:
        What is said of it.
    """
    page.locator(figure).scroll_into_view_if_needed()
    page.mouse.move(2, 2)
    for one in page.locator(f"{figure} {mark}").all()[:40]:
        box = one.bounding_box()
        if box is None:
            continue
        page.mouse.move(box["x"] + box["width"] / 2 - 1, box["y"] + box["height"] / 2)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(120)
        labels = page.locator(f"{figure} .hoverlayer .hovertext").all_text_contents()
        if labels:
            return " ".join(labels)
    raise AssertionError(f"nothing is said of any mark of {figure}")


def click_legend(page: Any, figure: str) -> None:
    """Click the first name of a figure's legend: it hides the lines of that name; and again: they are back."""
    shown = f"document.querySelector('{figure}').data.filter(trace => trace.visible !== 'legendonly').length"
    page.locator(figure).scroll_into_view_if_needed()
    before = page.evaluate(shown)
    for expected in (lambda now: now < before, lambda now: now == before):
        page.locator(f"{figure} .legend .legendtoggle").first.click()
        for _ in range(40):  # a second click within 300 ms would be a double click
            page.wait_for_timeout(50)
            if expected(page.evaluate(shown)):
                break
        assert expected(page.evaluate(shown))
        page.wait_for_timeout(400)


def sort_tables(page: Any) -> int:
    """Click the first heading of every table that can be sorted, twice, and see that its rows are in order and back to front.

    Returns:
        How many tables can be sorted.
    """
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    tables = [table for table in page.locator("table").all() if table.locator("button.sort").count()]
    for table in tables:
        texts = []
        for direction in ("ascending", "descending"):
            table.locator("button.sort").first.evaluate("button => button.click()")
            assert table.locator("th").first.get_attribute("aria-sort") == direction
            cells = table.locator("tbody tr:not(.dense) > :first-child").all_text_contents()
            texts.append([cell.strip() for cell in cells])
        assert sorted(texts[0]) == sorted(texts[1])
        if not any(text[:1].isdigit() for text in texts[0]):
            assert texts[0] == sorted(texts[0], key=str.casefold)
            assert texts[1] == sorted(texts[1], key=str.casefold, reverse=True)
    return len(tables)
