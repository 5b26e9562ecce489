"""A figure within a page: texts, the colours of the page, titles, and nothing from outside."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from kora.compare.inline_svg import hover, inline_svg
from kora.console.identity import LIGHT
from tests.support.svg import by_hover


def figure() -> Figure:
    made = Figure(figsize=(4, 3))
    axis = made.add_subplot()
    axis.set_xlabel("#005fa2 and -1.23456")
    hover(axis.plot([0, 1, 2], [0.1, 0.3, 0.2], "o-", color=LIGHT[3]), "a <b> & c")
    return made


def test_it_is_the_same_every_time() -> None:
    assert inline_svg(figure(), title="t", name="n") == inline_svg(figure(), title="t", name="n")


def test_no_id_is_in_two_svgs_of_a_page_and_every_reference_leads_to_one() -> None:
    pair = [inline_svg(figure(), title="t", name=name) for name in ("one", "other")]
    ids = [found for svg in pair for found in re.findall(' id="(.*?)"', svg)]
    assert len(ids) == len(set(ids)) > 4
    for svg in pair:
        wanted = set(re.findall(r'href="#(.*?)"|url\(#(.*?)\)', svg))
        assert {a or b for a, b in wanted} <= set(re.findall(' id="(.*?)"', svg))


def test_nothing_is_named_from_outside_and_no_style_is_of_the_whole_page() -> None:
    svg = inline_svg(figure(), title="t", name="n")
    assert not re.findall(r"https?:|<style|<script|<image|xmlns|<!|<\?", svg)


def test_its_colours_are_those_of_the_page_but_texts_stay_what_they_are() -> None:
    svg = inline_svg(figure(), title="t", name="n")
    assert ">#005fa2 and -1.23456</text>" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == {"#005fa2"}
    assert "stroke: var(--c3)" in svg
    assert "stroke: var(--ink)" in svg


def test_an_artist_says_its_words_to_the_pointer_and_the_chart_its_title() -> None:
    svg = inline_svg(figure(), title="x & y", name="n")
    assert list(by_hover(svg)) == ["a <b> & c"]
    assert svg.startswith('<svg id="n" viewBox="0 0 288 216" class="chart" role="img">')
    assert "<title>x &amp; y</title>" in svg
