"""The page of a report in a real browser, and its structure for people who do not see it."""

from __future__ import annotations

import html
import html.parser
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from make_report import HOSTILE, make_report

from cfptq.auditing import AuditReport
from cfptq.auditing.affected import FeatureBreakdown
from cfptq.auditing.html import format_html
from cfptq.errors import ConfigurationError

pytest.importorskip("jinja2", reason="HTML reports need jinja2")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def find_axe() -> Path | None:
    """The file axe.min.js of axe-core, from CFPTQ_AXE_CORE or from a package that ships it."""
    named = os.environ.get("CFPTQ_AXE_CORE")
    package = importlib.util.find_spec("axe_playwright_python")
    return Path(named) if named else Path(str(package.origin)).parent / "axe.min.js" if package is not None else None


AXE = find_axe()


@pytest.fixture(scope="module")
def report() -> AuditReport:
    return make_report()


@pytest.fixture(scope="module")
def page(report: AuditReport) -> str:
    return format_html(report, report.gate(max_vd=0.02, max_drift=0.5), include_people=True)


def open_in_browser(text: str, folder: Path, script: str = "", width: int = 1200) -> tuple[str, str]:
    """The page's HTML after it and ``script`` ran, and what the browser wrote to its console."""
    path = folder / "page.html"
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>") if script else text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]
    profile = [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=8000"]
    command = [str(CHROMIUM), *flags, *quiet, *profile, f"--window-size={width},900", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)})
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


class Outline(html.parser.HTMLParser):
    """Tags, headings, ids and references of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_runs_nothing_from_data(page: str) -> None:
    outline = Outline(page)
    assert [tag for tag, _ in outline.tags].count("script") == 1
    sources = [str(attrs["src"]) for _, attrs in outline.tags if "src" in attrs]
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not [attrs for _, attrs in outline.tags if "onerror" in attrs]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in outline.tags)
    assert "http" not in page.replace("http-equiv", "")
    assert HOSTILE not in page and "&lt;script&gt;" in page


def test_the_page_can_be_read_without_seeing_it(page: str) -> None:
    tags = Outline(page).tags
    names = Counter(tag for tag, _ in tags)
    assert names["main"] == names["header"] == names["nav"] == names["footer"] == names["h1"] == 1 and page.index("<title>") < page.index(
        "<body>"
    )
    assert dict(tags[0][1]).get("lang") == "en" or any(tag == "html" and attrs.get("lang") == "en" for tag, attrs in tags)
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in tags:
        for reference in ("aria-labelledby", "for"):
            assert attrs.get(reference) is None or attrs[reference] in ids
        if (attrs.get("href") or "").startswith("#"):
            assert str(attrs["href"])[1:] in ids
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    assert names["caption"] == names["table"] > 4
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img") and names["img"] >= 4
    inputs = [attrs["id"] for tag, attrs in tags if tag == "input"]
    assert inputs and set(inputs) <= {attrs.get("for") for tag, attrs in tags if tag == "label"}


def test_colours_of_text_have_enough_contrast() -> None:
    def luminance(colour: str) -> float:
        full = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(full[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = (Path(__file__).parents[2] / "cfptq" / "auditing" / "html" / "page.css").read_text()
    colours = set(re.findall(r"(?<![-\w])color: (#[0-9a-f]{3,6})", style))
    assert len(colours) > 2
    for colour in colours:
        for behind in ("#ffffff", "#f4f4f4"):
            assert (luminance(behind) + 0.05) / (luminance(colour) + 0.05) >= 4.5, (colour, behind)


def test_people_and_small_groups_appear_only_where_they_are_asked_for(report: AuditReport, page: str) -> None:
    without = format_html(report)
    told = next(person.told for person in report.consequences.people)
    assert "People affected" in page and "People affected" not in without
    assert told.split("→")[0] in page and "onerror" in page and "onerror" not in without
    ids = re.findall(r'<section id="([a-z]+)"', without)
    assert ids == ["verdict", "affected", "cost", "groups", "measures", "plots", "checked", "pointers", "signature"]


def test_plots_are_svg_files_of_their_own(report: AuditReport) -> None:
    plots = report.plots()
    assert {"confidence", "margins", "features"} <= {plot.name for plot in plots}
    for plot in plots:
        root = ET.fromstring(plot.svg)
        assert root.tag.endswith("svg") and "<script" not in plot.svg and "nan" not in plot.svg
    assert plots == report.plots()


def test_names_in_plots_are_text_and_no_formula(report: AuditReport) -> None:
    hostile = ["$\\frac{$", "</svg><script>", "\x1b[31mred", "a" * 80]
    features = tuple(FeatureBreakdown(name, 20, 10) for name in hostile)
    drawn = replace(report, consequences=replace(report.consequences, features=features)).plots()
    svg = next(plot.svg for plot in drawn if plot.name == "features")
    shown = " ".join(text.text or "" for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"))
    assert "$\\frac{$" in shown and "</svg><script>" in shown and "\\x1b[31mred" in shown and "a" * 30 not in shown


def test_at_most_a_thousand_people_are_shown(report: AuditReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfptq.auditing.html.page.MOST_PEOPLE", 3)
    text = format_html(report, include_people=True)
    assert f"the first 3 of {len(report.consequences.people)}; the CSV file holds all" in text


def test_without_jinja2_the_message_says_what_to_install(report: AuditReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ConfigurationError, match=r"cfptq.report."):
        report.to_html(tmp_path / "report.html")


@needs_browser
def test_a_browser_opens_the_page_without_errors_and_sorts_and_searches(page: str, tmp_path: Path) -> None:
    script = """
    (function () {
      var out = {};
      var table = Array.prototype.filter.call(document.querySelectorAll('table'), function (t) {
        return t.caption.textContent.indexOf('People affected') === 0; })[0];
      function column(place) {
        return Array.prototype.map.call(table.tBodies[0].rows, function (r) { return r.cells[place].textContent; });
      }
      var buttons = table.querySelectorAll('thead button');
      buttons[3].click(); out.up = column(3); out.sort = table.tHead.rows[0].cells[3].getAttribute('aria-sort');
      buttons[3].click(); out.down = column(3);
      var input = document.querySelector('input[data-table="' + table.id + '"]');
      if (input) { input.value = 'alert(0)'; input.dispatchEvent(new Event('input'));
        out.shown = Array.prototype.filter.call(table.tBodies[0].rows, function (r) { return !r.hidden; }).length; }
      var wide = document.documentElement.scrollWidth <= window.innerWidth + 1;
      document.body.setAttribute('data-out', JSON.stringify({up: out.up, down: out.down, sort: out.sort, shown: out.shown, wide: wide}));
    })();
    """
    dom, console = open_in_browser(page, tmp_path, script)
    assert console == ""
    outline = Outline(dom)
    assert "owned" not in next(iter(re.findall(r"<title>(.*?)</title>", dom)))
    out = json.loads(next(str(attrs["data-out"]) for _, attrs in outline.tags if "data-out" in attrs))
    up = [float(cell) for cell in out["up"] if cell != "-"]
    assert up == sorted(up) and len(up) > 2 and out["sort"] == "ascending"
    assert [cell for cell in out["down"] if cell != "-"] == [cell for cell in reversed(out["up"]) if cell != "-"] or sorted(
        out["down"]
    ) == sorted(out["up"])
    assert out["shown"] in (None, 0, 1) and out["wide"]


@needs_browser
@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_wider_than_the_screen(page: str, tmp_path: Path, width: int) -> None:
    # Headless windows are at least 500 pixels wide, so a phone is a frame.
    frame = f"<iframe id='phone' style='width:{width}px;height:800px;border:0' srcdoc='{html.escape(page, quote=True)}'></iframe>"
    script = """
    window.addEventListener('load', function () {
      var page = document.getElementById('phone').contentDocument;
      var parts = [page.documentElement].concat(Array.prototype.slice.call(page.querySelectorAll('.scroll, p, h1, h2, figure, nav')));
      var wide = parts.filter(function (part) { return part.scrollWidth > part.clientWidth + 1 && part.clientWidth > 0; });
      document.body.setAttribute('data-wide', JSON.stringify(wide.map(function (part) { return part.outerHTML.slice(0, 200); })));
      document.body.setAttribute('data-width', page.documentElement.clientWidth);
    });
    """
    dom, _ = open_in_browser(f"<!doctype html><html><body>{frame}</body></html>", tmp_path, script, 1400)
    found = [attrs for _, attrs in Outline(dom).tags if "data-wide" in attrs]
    assert found and found[0]["data-wide"] == "[]" and int(found[0]["data-width"] or 0) in range(width - 20, width + 1)


@needs_browser
@pytest.mark.skipif(AXE is None, reason="neither axe-playwright-python nor CFPTQ_AXE_CORE gives axe.min.js")
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_core_finds_no_serious_fault(page: str, tmp_path: Path, width: int) -> None:
    run = "axe.run().then(function (r) { document.body.setAttribute('data-axe', JSON.stringify(r.violations.filter(function (v) {"
    run += " return v.impact === 'serious' || v.impact === 'critical'; }).map(function (v) { return v.id; }))); });"
    assert AXE is not None
    library = AXE.read_text(encoding="utf-8").replace("</script>", "<\\/script>")
    dom, _ = open_in_browser(page, tmp_path, f"{library};{run}", width)
    found = [attrs["data-axe"] for _, attrs in Outline(dom).tags if "data-axe" in attrs]
    assert found == ["[]"]
