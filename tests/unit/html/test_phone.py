"""On a phone nothing of a page is cut: every table has a form that fits, and no element is wider than the page."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import components
from components.clean.config import CleanConfig
from components.clean.reporting import write_report
from components.clean.tally import Tally
from components.image.filters import FilterConfig
from components.image.records import Caption, CaptionRecord, Manifest, Rejection
from components.progress import Progress
from components.report.config import ReportConfig
from components.report.reporting import report
from components.storage.local import LocalStorage
from tests.unit.report.test_report import fabricate

ROOT = Path(next(iter(components.__path__)))
TEMPLATES = sorted(ROOT.rglob("report.html"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Lists what is wider than the page, or than the box that it is in and would be scrolled in.
SCRIPT = """<script>addEventListener("load", () => {
const wide = [...document.querySelectorAll("body *")].filter(one =>
  one.getBoundingClientRect().right > innerWidth + 1 ||
  one.matches(".scroll") && one.scrollWidth > one.clientWidth + 1);
document.title = "WIDE" + JSON.stringify([innerWidth, ...wide.map(one => one.outerHTML.slice(0, 120))]) + "EDIW";
})</script>"""


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parent.name)
def test_every_table_has_a_form_for_phones(template: Path) -> None:
    tables = re.findall(r'<table class="([^"]*)"[^>]*>(.*?)</table>', template.read_text(), re.DOTALL)
    assert len(tables) == template.read_text().count("<table")
    for classes, body in tables:
        kinds = {"stacked", "labelled", "film"} & set(classes.replace("{{", " ").split())
        assert len(kinds) == 1, classes
        if kinds == {"labelled"}:
            cells = re.findall(r"<td[^>]*>", body)
            unlabelled = [cell for cell in cells if "data-label=" not in cell and 'class="span"' not in cell]
            assert unlabelled == [], "a cell below another one needs its column's name"


@pytest.mark.proof
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
@pytest.mark.parametrize("page", ["run", "data"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_no_element_is_wider_than_the_page(tmp_path: Path, page: str, width: int) -> None:
    written = {"run": run_report, "data": data_report}[page](tmp_path / "work")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", written.read_text())
    # A window has a least width of its own; a frame has not.
    inner = html.escape(text.replace("</head>", f"{SCRIPT}</head>"), quote=True)
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<!doctype html><iframe width="{width}" height="900" srcdoc="{inner}"></iframe><script>setInterval(() => '
        "{ document.title = frames[0].document.title }, 50)</script>"
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    command += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1600,1000", "--virtual-time-budget=5000", outer.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (title,) = re.findall(r"<title>WIDE(.*?)EDIW</title>", dumped, re.DOTALL)
    shown, *wide = json.loads(html.unescape(title))
    assert (shown, wide) == (width, [])


def run_report(work: Path) -> Path:
    """Write a run's report, with everything that it can have."""
    report(ReportConfig(), "first", "SUCCEEDED", fabricate(str(work)), Progress())
    return work / "runs/first/report.html"


def data_report(work: Path) -> Path:
    """Write a data report of images with long names and of many sizes."""
    tally = Tally(10, 10)
    long = "a-long-name-without-any-space-" * 4
    for number in range(6):
        captions = (Caption("word " * 60 + long, f"model:{long}"),)
        tally.keep(CaptionRecord(f"{number:064x}", f"{long}{number}", 1, captions, "v", 900, 100 * (number + 1)))
        tally.reject(Rejection(f"{long}{number}", "ingest", f"reason-{number}-{long}", long, threshold=0.25))
    dataset = LocalStorage(work)
    manifest = Manifest(str(work / long), 6, 6, ("g",), "", masks=5, other_files={long: 7, ".mp4": 1})
    write_report(CleanConfig(), FilterConfig(), tally, manifest, "0123456789abcdef", dataset, dataset)
    return work / "report.html"
