"""Figures of a comparison from results written by hand."""

import dataclasses
import io
import re
import statistics
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from rich.console import Console

from hfp.comparison import definition
from hfp.comparison.definition import Comparison, Variant, variants_of
from hfp.comparison.page import figures, page, size_chart
from hfp.comparison.table import Spread, cells_of, curves, gather, markdown, plain, rows, tables
from hfp.results.charts import LIGHT, STROKES

COMPARISON = Comparison(variants_of(["ca-hfp", "fedavg"]), {"rounds": 6}, seeds=(0, 1), ranks=(1, 2))


def result(accuracies, megabytes, seconds=2.0):
    history = [
        {"round": number, "accuracy": accuracy, "bytes_up": megabytes * 4e5, "bytes_down": megabytes * 6e5,
         "statistics_bytes_up": 1e5, "statistics_bytes_down": 4e5, "device_seconds": seconds}
        for number, accuracy in enumerate(accuracies, 1)
    ]  # fmt: skip
    total = len(accuracies)
    return {
        "history": history,
        "bytes_up": total * megabytes * 4e5 + 1e5,
        "bytes_down": total * megabytes * 6e5 + 4e5,
        "training_macs": 3e9,
        "device_seconds": total * seconds,
        "peak_bytes": 5e6,
    }


RESULTS = {
    ("ca-hfp", "rank 1", 0): result([10, 60, 70, 80, 80, 90], 1.0),
    ("ca-hfp", "rank 1", 1): result([10, 20, 70, 90, 90, 90], 1.0),
    ("fedavg", "rank 1", 0): result([50, 80, 90, 90, 95, 95], 4.0),
    ("fedavg", "rank 1", 1): result([10, 40, 60, 70, 70, 70], 4.0),
    ("ca-hfp", "rank 2", 0): result([10, 10, 10, 10, 10, 10], 0.5),
}


@pytest.fixture(scope="module")
def runs():
    return gather(COMPARISON, lambda cell: RESULTS.get((cell.variant, cell.size, cell.seed)))


@pytest.fixture(scope="module")
def made(runs):
    return rows(COMPARISON, runs)


def test_accuracies_are_means_of_the_last_five_rounds_and_differences_are_paired(made):
    ours, fedavg, weak = made
    last = {
        name: [statistics.mean(r["accuracy"] for r in RESULTS[name, "rank 1", seed]["history"][1:]) for seed in (0, 1)]
        for name in ("ca-hfp", "fedavg")
    }
    assert ours.accuracy.mean == pytest.approx(statistics.mean(last["ca-hfp"]))
    assert ours.accuracy.deviation == pytest.approx(statistics.stdev(last["ca-hfp"]))
    assert ours.difference is None
    pairs = [b - a for a, b in zip(last["ca-hfp"], last["fedavg"], strict=True)]
    assert fedavg.difference.mean == pytest.approx(statistics.mean(pairs))
    assert fedavg.difference.deviation == pytest.approx(statistics.stdev(pairs))
    assert (weak.size, weak.seeds, weak.accuracy.deviation) == ("rank 2", 1, None)


def test_costs_to_target_are_those_of_the_seeds_that_got_there(made):
    ours, fedavg, weak = made
    assert ours.target == pytest.approx(0.9 * max(ours.accuracy.mean, fedavg.accuracy.mean))
    first = [
        next(r["round"] for r in RESULTS["ca-hfp", "rank 1", seed]["history"] if r["accuracy"] >= ours.target)
        for seed in (0, 1)
    ]
    assert (ours.reached.runs, ours.reached.rounds) == (2, statistics.mean(first))
    assert ours.reached.megabytes == pytest.approx(ours.reached.rounds + 0.5)
    assert ours.reached.seconds == pytest.approx(2 * ours.reached.rounds)
    fixed = rows(
        Comparison(COMPARISON.variants, COMPARISON.base, seeds=(0, 1), ranks=(1, 2), target=92.0),
        gather(COMPARISON, lambda cell: RESULTS.get((cell.variant, cell.size, cell.seed))),
    )
    assert fixed[0].reached.runs == 0
    assert (fixed[1].reached.runs, fixed[1].reached.rounds, fixed[1].reached.megabytes) == (1, 5, 20.5)
    assert cells_of(fixed[0], fixed)[-1] == "never"
    assert cells_of(fixed[1], fixed)[-1] == "5 rounds, 20.5 MB, 10.0 s (1 of 2 seeds)"
    assert plain(fixed)[0]["rounds_to_target"] is None


def test_costs_are_a_runs_means(made):
    assert [row.megabytes_up for row in made] == pytest.approx([2.5, 9.7, 1.3])
    assert [row.megabytes_down for row in made] == pytest.approx([4.0, 14.8, 2.2])
    assert (made[0].gmacs, made[0].peak_megabytes, made[0].seconds) == (3.0, 5.0, 12.0)


def test_a_curve_ends_where_its_row_says(runs, made):
    for row in made:
        (mine,) = (c for c in curves(COMPARISON, runs, 1.0, row.size, "megabytes") if c.variant == row.variant)
        assert mine.points[-1][0] == pytest.approx(row.megabytes_up + row.megabytes_down)


def test_own_models_are_shown_where_all_runs_measured_them(runs):
    assert all(row.own is None for row in rows(COMPARISON, runs))
    measured = {key: {seed: dict(one) for seed, one in results.items()} for key, results in runs.items()}
    for seed, (own, shared) in enumerate([(90.0, 50.0), (80.0, 60.0)]):
        history = list(measured["ca-hfp", 1.0, "rank 1"][seed]["history"])
        history[2] = {**history[2], "personal": {"own": 1.0, "shared": 1.0}}
        history[4] = {**history[4], "personal": {"own": own, "shared": shared}}
        measured["ca-hfp", 1.0, "rank 1"][seed]["history"] = history
    ours, fedavg, _ = found = rows(COMPARISON, measured)
    assert (ours.own.mean, ours.shared.mean, fedavg.own) == (85.0, 55.0, None)
    assert ours.own.deviation == pytest.approx(statistics.stdev([90, 80]))
    assert "| own models, % | global, same data, % |" in markdown(found)
    assert "| 85.00 ± 7.07 | 55.00 ± 7.07 |" in markdown(found)
    assert plain(found)[0]["own"] == 85.0
    assert plain(found)[1]["own"] is None
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(tables(found)[0])
    text = console.export_text()
    assert "own, %" in text
    assert "85.0" in text
    assert "…" not in text


def test_curves_are_means_with_the_seeds_range(runs):
    ours, fedavg = curves(COMPARISON, runs, 1.0, "rank 1", "round")
    assert ours.points[1] == (2, 40, 20, 60)
    by_traffic = curves(COMPARISON, runs, 1.0, "rank 1", "megabytes")[1]
    assert by_traffic.points[2] == pytest.approx((12.5, 75.0, 60, 90))
    assert fedavg.variant == "fedavg"


def test_tables_fit_a_terminal_of_80_columns(made):
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(made):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "74.00 ± 2.83" in text
    assert "rank 2, alpha 1" in text


def test_names_of_methods_stay_whole_in_a_terminal_of_80_columns(made):
    wide, own = Spread(62.05, 11.13), Spread(66.41, 7.7)
    longest = [
        dataclasses.replace(made[0], variant=name, accuracy=wide, difference=wide, own=own, shared=own)
        for name in ("ca-hfp-paper", "fedmp-bandit")
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*tables(longest))
    text = console.export_text()
    assert "…" not in text
    assert all(name in text for name in ("variant ", "ca-hfp-paper ", "fedmp-bandit "))


def test_markdown_has_every_row(made):
    text = markdown(made)
    assert text.count("| ca-hfp |") == 2
    assert text.count("## ") == 2
    assert "| fedavg | 76.00 ± 19.80 | +2.00 ± 16.97 | 9.7 | 14.8 |" in text


def test_a_variants_name_stays_in_its_cell_of_markdown(made):
    (row, *_) = made
    text = markdown([dataclasses.replace(row, variant="a|b\n<b> & c")])
    assert "| a\\|b &lt;b&gt; &amp; c | 74.00" in text


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order, and collects what a page would fetch or run."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")] + [tag] * (
            tag in ("script", "link")
        )

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(runs, made):
    text = page(COMPARISON, runs, made)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.fetched == []
    assert set(re.findall('https?://[^ "<]*', text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "prefers-color-scheme: dark" in text
    for svg in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + svg.split("</svg>")[0] + "</svg>")
    assert text.count("<svg") == 2 * 2 + 4
    assert "arXiv 2603.12591" in text


def test_names_are_text_on_the_page_and_never_markup(runs, made):
    evil = "<script>&"
    variants = tuple(dataclasses.replace(v, name=v.name.replace("fedavg", evil)) for v in COMPARISON.variants)
    named = {(v.replace("fedavg", evil), *where): results for (v, *where), results in runs.items()}
    comparison = dataclasses.replace(COMPARISON, variants=variants)
    text = page(comparison, named, rows(comparison, named))
    assert "<td>&lt;script&gt;&amp;</td>" in text
    assert "<b>&lt;script&gt;&amp;</b>" in text
    assert "<script" not in text


def variants_page(*changes):
    variants = tuple(Variant(f"variant {index}", one) for index, one in enumerate(changes))
    comparison = Comparison(variants, {"rounds": 6}, seeds=(0,))
    runs = gather(comparison, lambda cell: result([50, 60], 1.0))
    return page(comparison, runs, rows(comparison, runs))


def test_the_page_says_in_what_variants_differ_beside_their_methods():
    text = variants_page({"method": "fedavg"}, {"method": "fedavg", "learning_rate": 0.5})
    assert "<h1>2 variants of 1 federated method on digits</h1>" in text
    assert "others may differ in learning_rate." in text
    assert "the same partition" not in text
    text = variants_page({"method": "fedavg"}, {"method": "fedprox", "options": {"mu": 0.1}})
    assert "<h1>2 federated methods on digits</h1>" in text
    assert "At one seed every method sees the same partition, initial weights and batches." in text


def test_a_comparison_without_the_dirichlet_partition_names_its_own():
    comparison = Comparison(COMPARISON.variants, {"rounds": 6, "partition": "iid"}, seeds=(0,), ranks=(1, 2))
    runs = gather(comparison, lambda cell: RESULTS.get((cell.variant, cell.size, cell.seed)))
    made = rows(comparison, runs)
    console = Console(file=io.StringIO(), width=80)
    console.print(*tables(made))
    shown = [console.file.getvalue(), markdown(made), page(comparison, runs, made), *figures(comparison, runs, made)]
    shown.append(str(next(comparison.cells())))
    assert not [text for text in shown if "alpha" in text.lower() or "iid" not in text]


def test_one_experiment_tells_how_data_are_dealt_out(monkeypatch):
    comparison, made = Comparison(variants_of(["fedavg", "ca-hfp"]), alphas=(1, 10), ranks=(1, 2)), []
    real = definition._experiment
    monkeypatch.setattr(definition, "_experiment", lambda fields: made.append(fields) or real(fields))
    assert comparison.dealt(10) == "alpha 10"
    assert len(made) == 1


def test_the_page_says_which_runs_have_no_result(runs, made):
    text = page(COMPARISON, runs, made)
    assert text.count("Runs without a result are left out") == 1
    assert "left out: ca-hfp has 1 of 2 seeds, fedavg has 0 of 2 seeds." in text


def test_the_pages_legend_tells_as_many_curves_apart_as_its_charts():
    count = len(LIGHT) * len(STROKES)
    text = variants_page(*({"method": "fedavg", "learning_rate": 0.01 * (1 + index)} for index in range(count)))
    marks = re.findall(r'<span class="(s\d+ stroke\d+)"><b>', text)
    assert len(set(marks)) == count
    assert all(f".stroke{number}::before" in text for number in range(1, len(STROKES)))


def test_figures_are_the_pages_charts_as_files(runs, made):
    found = figures(COMPARISON, runs, made)
    assert "alpha-1-rank-2-round.svg" in found
    assert "alpha-1-time-on-the-clients-devices.svg" in found
    assert len(found) == 2 * 2 + 4
    assert all(
        "prefers-color-scheme" in chart and ">fedavg<" in chart for name, chart in found.items() if "-2-" not in name
    )


def test_no_difference_has_no_sign():
    assert f"{Spread(-0.001, 0.2):+.2f}" == "+0.00 ± 0.20"
    assert f"{Spread(-0.01, 0.2):+.2f}" == "-0.01 ± 0.20"


def test_sizes_that_are_ratios_stand_in_their_proportions():
    comparison = Comparison(COMPARISON.variants, COMPARISON.base, seeds=(0,), ratios=(0.25, 0.5, 0.9))
    found = rows(comparison, gather(comparison, lambda cell: result([50.0], 1.0)))
    chart = size_chart(comparison, found, 1.0, "Accuracy")
    assert "channels removed, %" in chart
    assert ">ratio 25%<" not in chart
    xs = sorted(
        {
            round(float(x), 1)
            for x in re.findall(r'<use xlink:href="#m[^"]*" x="([\d.]+)" y="[\d.]+" style="fill: var\(--c0', chart)
        }
    )
    assert (xs[1] - xs[0]) / (xs[2] - xs[0]) == pytest.approx(25 / 65, rel=1e-2)
