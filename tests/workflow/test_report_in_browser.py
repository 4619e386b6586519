"""The report of a whole run in a browser: all is there, it asks for nothing, all can read it."""

import re
import shutil

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium, a package of Debian, is missing")

CI = ("--configfile", "config/ci.yaml")
LEAST_CONTRAST = 4.5  # WCAG 2.1, level AA

PALE_TEXT = """least => {
  const levels = text => text.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = levels(colour).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((levels(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const pale = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.closest("svg, style")) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least) pale.add(`${texts.currentNode.data.trim()} (${contrast.toFixed(1)})`);
  }
  return [...pale];
}"""
"""Texts whose contrast with what is behind them is below the least; those of figures apart."""

SEEN = """([id, kind]) => {
  const part = document.querySelector(`#${id} ${kind}`);
  if (!part || !part.checkVisibility()) return "is missing or hidden";
  const drawn = [...part.querySelectorAll(kind === "table" ? "tbody td" : "path, image, use")];
  const filled = drawn.filter(one => one.getBoundingClientRect().width > 0 &&
    (kind === "svg" || one.innerText.trim()));
  return filled.length > 1 ? "" : "is empty";
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser, path, complaints=None, **context):
    """Open a page, and note what it says on the console and every file but itself it asks for."""
    page = browser.new_context(**context).new_page()
    noted = [] if complaints is None else complaints
    page.on("console", lambda message: noted.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: noted.append(f"error: {error}"))
    page.on("request", lambda request: noted.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    noted.remove(f"request: {path.as_uri()}")
    return page


def faults(browser, path, parts, scheme="light", width=1280):
    """Return what is wrong with a report that should have these parts, its details all open.

    ``parts`` has "table" or "svg" by the id of each.
    """
    found = []
    size = {"width": width, "height": 800}
    page = opened(browser, path, found, color_scheme=scheme, viewport=size)
    for state in ("closed", "open"):
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        if wide > width:
            found.append(f"{wide} pixels wide with details {state}")
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    found += [f"pale: {text}" for text in page.evaluate(PALE_TEXT, LEAST_CONTRAST)]
    seen = {name: page.evaluate(SEEN, [name, kind]) for name, kind in parts.items()}
    found += [f"{name} {fault}" for name, fault in seen.items() if fault]
    page.context.close()
    return found


def parts_of(results):
    """Return the ids that all tables and figures of a run have in its report."""
    tables = {f"{path.parent.name}-t{path.stem.removeprefix('table_')}": "table"
              for path in results.glob("tables/*/table_*.csv")}  # fmt: skip
    figures = {f"{path.parent.name}-f{path.stem.removeprefix('figure_')}": "svg"
               for path in results.glob("figures/*/figure_*.svg")}  # fmt: skip
    assert len(tables) > 20
    assert len(figures) > 20
    return tables | figures


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)]
)
def test_every_part_is_seen_and_nothing_is_wrong(finished, browser, scheme, width):
    results = finished.folder / "results"
    assert faults(browser, results / "report.html", parts_of(results), scheme, width) == []


SPOILING = {
    r"console: .*Content.Security.Policy": ("</main>", "<script>a.b()</script></main>"),
    r"pale: Hm \(2.8\)": ("</main>", '<p style="color:#999;background:#fff">Hm</p></main>'),
    r"\d+ pixels wide": ("</main>", '<div style="width:2000px">Wide</div></main>'),
    "symmetry-t1 is missing": ('id="symmetry-t1"', 'id="other"'),
    "ued-f3 is missing or hidden": ('id="ued-f3"', 'id="ued-f3" hidden'),
    "ued-f2 is empty": ("</style>", "#ued-f2 :is(path, image, use) {display: none}</style>"),
    "ued-taccuracy is empty": ("</style>", "#ued-taccuracy td {display: none}</style>"),
}
"""What spoils a report, by the fault that it must be found by."""


def test_each_fault_would_be_found(finished, browser, tmp_path):
    results, spoilt = finished.folder / "results", tmp_path / "report.html"
    text = (results / "report.html").read_text("utf-8")
    for old, new in SPOILING.values():
        assert text.count(old) == 1
        text = text.replace(old, new)
    spoilt.write_text(text, "utf-8")
    found = faults(browser, spoilt, parts_of(results))
    for fault in SPOILING:
        assert any(re.match(fault, one) for one in found), fault


def test_request_for_another_file_would_be_found(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text('<p>Hm<img src="http://127.0.0.1:9/a.png" alt="">', "utf-8")
    assert "request: http://127.0.0.1:9/a.png" in faults(browser, path, {})


def test_keyboard_alone_is_enough(finished, browser):
    page = opened(browser, finished.folder / "results/report.html")

    def focused(what):
        return page.evaluate(f"(() => {{ const at = document.activeElement; return {what}; }})()")

    page.keyboard.press("Tab")
    assert focused("at.className") == "skip"
    assert focused("at.getBoundingClientRect().left") >= 0
    assert focused("parseFloat(getComputedStyle(at).outlineWidth)") > 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused("at.closest('main') !== null")

    page.focus("#symmetry-t1 summary")
    assert not page.is_visible("#symmetry-t1 table")
    page.keyboard.press("Enter")
    assert page.is_visible("#symmetry-t1 table")
    page.keyboard.press("Tab")
    assert focused("at.className + at.role + at.tabIndex") == "scrollregion0"
    page.context.close()


def test_wide_tables_scroll_in_their_own_frame_on_a_phone(finished, browser):
    size = {"width": 360, "height": 740}
    page = opened(browser, finished.folder / "results/report.html", viewport=size)
    page.focus("#symmetry-t3 .scroll")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#symmetry-t3 .scroll').scrollLeft > 0")
    assert page.evaluate("scrollX") == 0
    page.context.close()


def test_paper_has_what_the_screen_hides(finished, browser):
    page = opened(browser, finished.folder / "results/report.html", color_scheme="dark")
    height = "document.querySelector('#symmetry-t1 table').getBoundingClientRect().height"
    page.emulate_media(media="print")
    assert page.evaluate(height) > 50
    assert not page.is_visible("nav")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    page.context.close()


def test_snakemake_reports_the_run_too_and_without_a_network(finished, browser, tmp_path):
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    result = finished.snakemake(*CI, "--report", str(tmp_path / "all.zip"), **nowhere)
    assert result.returncode == 0, result.stdout + result.stderr
    shutil.unpack_archive(tmp_path / "all.zip", tmp_path / "all")
    (path,) = tmp_path.glob("all/*/report.html")
    noted = []
    page = opened(browser, path, noted)
    page.get_by_text("The whole run", exact=True).first.click()
    page.locator("tr", has_text="report").locator("a").first.click()
    frame = page.frame_locator("iframe")
    assert frame.locator("h1").inner_text() == "Diffractory: what this run reproduced"
    own = f"request: {path.parent.as_uri()}/"
    assert not [
        one for one in noted if not one.startswith((own, "console: cdn.tailwindcss.com should"))
    ]
    held = page.evaluate("Object.keys(results)")
    assert len([name for name in held if name.startswith("results/")]) == 1 + len(
        parts_of(finished.folder / "results")
    )
    page.context.close()
