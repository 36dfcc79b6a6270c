"""Charts as SVG text: whole, without what a page must not have, in the page's colours."""

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from hfp.errors import InputError
from hfp.results.charts import DARK, LIGHT, Bar, Line, bar_chart, line_chart, standalone, variables

LINES = [Line('"<q>" $x$', 0, [(1, 1.0, 0.5, 2.0), (2, 2.25, 1.0, 3.0)]), Line("b & c", 11, [(1, 1.5), (2, 2.5)])]


def texts(chart):
    return {"".join(node.itertext()).strip() for node in ElementTree.fromstring(chart).iter() if "text" in node.tag}


def test_names_are_escaped_and_mathematics_left_alone():
    chart = line_chart("a < b", "x & y", "$z$", LINES, legend=True)
    assert {"a < b", "x & y", "$z$", '"<q>" $x$', "b & c"} <= texts(chart)
    tips = {node.text for node in ElementTree.fromstring(chart).iter() if node.tag.endswith("title")}
    assert {'"<q>" $x$: 2.25', "b & c: 2.5"} <= tips


def test_a_title_with_a_backslash_is_text():
    title = r"\d and \1"
    assert ElementTree.fromstring(line_chart(title, "x", "y", LINES)).get("aria-label") == title


def test_colours_are_the_pages_and_nothing_else_is_brought_along():
    chart = line_chart("a", "x", "y", LINES)
    assert not re.search("#[0-9a-f]{6}|font-family|<style|<metadata|<!--|script", chart)
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", chart))
    assert {"--ink", "--soft", "--rule", "--c0", "--c1"} == used
    declared = variables()
    for colours in (LIGHT, DARK):
        for name, colour in enumerate(colours):
            assert f"--c{name}: {colour};" in declared
    assert {name for name in used if f"{name}:" in declared} == used


def test_bars_have_their_names_and_values_and_the_pages_colours():
    chart = bar_chart("a < b", "x & y", [Bar("$one$", 1.5, 1.0, 2.0), Bar("two", 3.25)])
    assert {"a < b", "x & y", "$one$", "two", "1.5", "3.25"} <= texts(chart)
    assert not re.search("#[0-9a-f]{6}|font-family|<style|<metadata|<!--|script", chart)
    assert set(re.findall(r"var\((--[a-z0-9]+)\)", chart)) == {"--ink", "--soft", "--rule", "--c0"}


def test_more_curves_than_colours_can_be_told_apart():
    strokes = []
    for index in range(2 * len(LIGHT)):
        chart = ElementTree.fromstring(line_chart("a", "x", "y", [Line("one", index, [(1, 1.0), (2, 2.0)])]))
        curve = next(node for node in chart.iter() if node.get("class") == "curve")
        strokes.append(next(node.get("style") for node in curve.iter() if node.tag.endswith("path")))
    assert len({re.sub("stroke-width: [0-9.]+", "", stroke) for stroke in strokes}) == 2 * len(LIGHT)


def test_what_is_referred_to_keeps_its_name_and_nothing_else_has_one():
    chart = line_chart("a", "x", "y", LINES)
    named = set(re.findall(r' id="([^"]*)"', chart))
    referred = set(re.findall(r'href="#([^"]*)"', chart)) | set(re.findall(r"url\(#([^)]*)\)", chart))
    assert named == referred


def test_a_legend_of_long_names_keeps_within_the_chart():
    names = ["none", "least-squares + batch-norm", *(f"bias + batch-norm {index}" for index in range(4))]
    chart = line_chart("a", "x", "y", [Line(n, i, [(1, 1.0), (2, 2.0)]) for i, n in enumerate(names)], legend=True)
    width = float(re.search(r'viewBox="0 0 ([0-9.]+)', chart)[1])
    found = re.findall(r"<text [^>]*?(?:x=\"|translate\()([0-9.-]+)[^>]*>([^<]*)</text>", chart)
    placed = {name: float(x) for x, name in found if name in names}
    assert set(placed) == set(names)
    assert all(x > 20 and x + 5 * len(name) < width for name, x in placed.items())


def test_a_legend_names_every_curve_whatever_its_name():
    words = " ".join(f"word{index}" for index in range(30))
    chart = line_chart("a", "x", "y", [Line("_mine", 0, [(1, 1.0)]), Line(words, 1, [(1, 2.0)])], legend=True)
    shown = texts(chart)
    assert "_mine" in shown
    lines = [text for text in shown if text.startswith("word")]
    assert all(len(line) < 80 for line in lines)
    assert sorted(" ".join(lines).split()) == sorted(words.split())


def test_a_single_round_is_labelled_as_one():
    shown = texts(line_chart("a", "x", "y", [Line("one", 0, [(3, 50.0)])]))
    assert "3" in shown
    assert not {"2.9", "3.0", "3.1"} & shown


def test_the_same_chart_is_the_same_text():
    assert line_chart("a", "x", "y", LINES) == line_chart("a", "x", "y", LINES)


def test_a_file_of_its_own_has_the_colours():
    chart = standalone(line_chart("a", "x", "y", LINES))
    assert ElementTree.fromstring(chart)[0].text.startswith(":root")
    assert "prefers-color-scheme: dark" in chart


def test_a_flat_curve_a_single_point_and_places_by_name_are_drawn():
    line_chart("flat", "x", "y", [Line("one", 0, [(0, 5, 5, 5), (1, 5, 5, 5)])])
    assert {"only", "one more"} <= texts(
        line_chart("p", "x", "y", [Line("one", 0, [(0, 5)])], places={0: "only", 1: "one more"})
    )


def test_without_matplotlib_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'matplotlib is missing; pip install "hfp\[examples\]"'):
        line_chart("a", "x", "y", LINES)
