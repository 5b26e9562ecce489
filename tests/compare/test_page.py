"""The page of a comparison holds everything, loads nothing, and sorts in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from kora.compare.command import compare, compare_command
from kora.compare.page import to_html
from kora.runs.results import write_results
from tests.support.compare_factory import five_strategies
from tests.support.comparisons import run, screen
from tests.support.svg import by_hover, marks

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
in_a_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed"
)


class Reader(HTMLParser):
    """Tags with their attributes, and the texts of each row of the first table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._in_cell = self._in_cell or tag in ("td", "th", "button")
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th", "button")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    five_strategies(tmp_path)
    (tmp_path / "runs/fewshot/KoRA/seed9/version_0").mkdir(parents=True)
    compare_command([tmp_path], out=tmp_path / "out", console=screen())
    return tmp_path / "out/compare.html"


def test_the_page_has_table_charts_notes_and_what_is_left_out(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    read = Reader(text)
    assert [row[0] for row in read.rows[1:6]] == ["KoRA", "LoRA", "VPT", "KoRA-side", "LinearProbe"]
    assert "p (Holm)" in read.rows[0]
    assert sum(tag == "svg" and a.get("class") == "chart" for tag, a in read.tags) == 3
    assert "Learning curves: val/accuracy" in text
    assert "Learning curves: train/accuracy" in text
    (curves, _) = re.findall('<svg id="curves.*?</svg>', text)
    drawn = by_hover(curves)
    tested = [groups for title, groups in drawn.items() if title.endswith(", tested")]
    assert sum(len(marks(groups)) for groups in tested) == 15, "a diamond a run"
    assert "10,000 draws" in text
    assert "seed9/version_0: has no results.json" in text


def test_links_lead_to_the_pictures_of_the_runs(page: Path) -> None:
    links = [a["href"] for tag, a in Reader(page.read_text()).tags if tag == "a"]
    assert len(links) == 15
    for link in links:
        assert link is not None
        assert not Path(link).is_absolute()
        assert (page.parent / unquote(link)).is_file()


def test_the_page_says_who_is_ahead_and_where_strategies_differ(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "KoRA is ahead of LinearProbe" in text
    for heading in (
        "Accuracy by class", "Most frequent confusions",
        "Images on which KoRA and LinearProbe differ",
    ):  # fmt: skip
        assert f"<summary>{heading}</summary>" in text
    assert "kind 3 → kind 4" in text


def test_several_experiments_have_a_table_together(tmp_path: Path) -> None:
    runs = [run(s, k, 0.3 + k / 100) for s in ("LinearProbe", "LoRA") for k in (0, 1, 2)]
    runs += [run("LoRA", k, 0.6 + k / 100, experiment="more", protocol={}) for k in (0, 1, 2)]
    for folder, made in runs:
        write_results(tmp_path / folder, made)
    console = screen()
    compare_command([tmp_path], out=tmp_path / "out", console=console)
    said = console.export_text()
    for text in (
        said,
        *((tmp_path / "out" / n).read_text() for n in ("compare.md", "compare.html")),
    ):
        assert "All experiments" in text
    rows = Reader((tmp_path / "out/compare.html").read_text()).rows
    assert rows[0] == ["strategy (test/accuracy)", "fewshot", "more"]
    assert [row[0] for row in rows[1:3]] == ["LoRA", "LinearProbe"]
    assert rows[1][2].startswith("61.00 %")
    assert rows[2][2] == "–"


def test_nothing_is_loaded_from_anywhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"https?:|//\w|url\((?!#)|@import|fetch\(|XMLHttp", text)
    for tag, attributes in Reader(text).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert not {"src", "srcset", "xlink:href"} & attributes.keys()
        assert tag == "a" or str(attributes.get("href", "#")).startswith("#")
    assert "default-src 'none'" in text, "the browser itself is told to load nothing"


def test_both_kinds_of_screen_have_colours(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    colours = [
        set(re.findall(r"--[\w]+(?=:)", block)) for block in re.findall(r":root {.*?}", text, re.S)
    ]
    assert len(colours) == 2
    assert colours[0] == colours[1], "a colour without its dark form"


def test_no_id_is_there_twice_and_every_mark_of_a_legend_is_drawn(page: Path) -> None:
    tags = Reader(page.read_text(encoding="utf-8")).tags
    ids = [str(a["id"]) for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {str(a["href"]) for tag, a in tags if tag == "use"}
    assert used <= {f"#{one}" for one in ids}
    assert len([one for one in used if one.startswith("#key")]) == 5


def test_names_of_users_are_no_markup() -> None:
    text = to_html([compare([run("<script>alert(1)</script>", 0, 0.5)])], ["<b>bold</b>"])
    assert "<script>alert" not in text
    assert "<b>bold" not in text


def test_runs_without_curves_have_a_page_too(tmp_path: Path) -> None:
    made = run("LoRA", 0, 0.5)
    write_results(tmp_path / made.folder, made.result)
    (tmp_path / made.folder / "metrics.csv").write_text("step,val/accuracy\n3,damaged\n")
    compare_command([tmp_path], out=tmp_path / "out", console=screen())
    assert "Learning curves" not in (tmp_path / "out/compare.html").read_text(encoding="utf-8")


def opened(page: Path, *clicks: str) -> Reader:
    """The page as a browser without network has it, after clicks on these headings."""
    assert BROWSER is not None
    script = f"""<script>
      for (const name of {list(clicks)}) [...document.querySelectorAll("table.sortable button")]
        .find(button => button.textContent === name).click();
    </script>"""
    clicked = page.with_name("clicked.html")
    # As a user's own script, which the page itself would not load.
    clicked.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"))
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=2000", "--dump-dom", clicked.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Reader(done.stdout)


def names(read: Reader) -> list[str]:
    return [row[0] for row in read.rows[1:8]]


@in_a_browser
@pytest.mark.slow
def test_a_click_on_a_heading_sorts_and_another_turns_the_order(page: Path) -> None:
    once = opened(page, "trainable")
    sizes = ["LinearProbe", "VPT", "KoRA-side", "LoRA", "KoRA"]
    assert names(once) == [*sizes, "majority class", "chance"], "rows without a number come last"
    assert ("th", {"scope": "col", "aria-sort": "ascending"}) in once.tags
    assert names(opened(page, "trainable", "trainable"))[:5] == sizes[::-1]
    rises, falls = opened(page, "verdict"), opened(page, "verdict", "verdict")
    column = rises.rows[0].index("verdict")
    first, last = ([row[column] for row in read.rows[1:5]] for read in (rises, falls))
    assert first == sorted(first) != last == sorted(last, reverse=True)
    by_name = sorted([*sizes, "majority class", "chance"], key=str.lower)
    assert names(opened(page, "mean", "strategy")) == by_name


@in_a_browser
@pytest.mark.slow
def test_the_page_is_drawn_on_a_light_and_on_a_dark_screen(page: Path) -> None:
    from PIL import Image

    assert BROWSER is not None
    grounds = []
    for scheme in ("1", "0"):  # light, dark
        picture = page.with_name(f"{scheme}.png")
        command = [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={page.parent / 'profile'}", "--window-size=1200,900",
            f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}",
            page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=120, check=True)
        with Image.open(picture) as image:
            pixels = image.convert("RGB")
        assert len(pixels.getcolors(1 << 24) or []) > 50, "an empty page"
        grounds.append(pixels.getpixel((2, 2)))
    assert grounds == [(255, 255, 255), (0x15, 0x17, 0x1A)]
