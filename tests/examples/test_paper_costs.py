"""The paper's cost columns, from the networks themselves."""

from pathlib import Path

import pytest
from data_files import read
from paper_costs import PAPER, lines, paper_costs, submodel

from hfp.errors import InputError

DATA = Path(__file__).parents[2] / "examples/benchmarks/paper_costs.csv"


@pytest.fixture(scope="module")
def rows():
    return {name: paper_costs(name) for name in ("vgg16", "resnet32")}


def figures(rows, network, method, ratio, rule):
    (row,) = [r for r in rows[network] if (r.method, r.ratio, r.rule) == (method, ratio, rule)]
    return row.up / 1e3, row.down / 1e3, row.macs / 1e9


def test_full_models_are_the_papers(rows):
    for network, tolerance in (("vgg16", 0.01), ("resnet32", 0.02)):
        up, down, macs = figures(rows, network, "fedavg", 0.5, "all")
        assert up == down == pytest.approx(PAPER[network, "fedavg"][0] / 1e3, rel=0.01)
        assert macs == pytest.approx(PAPER[network, "fedavg"][2] / 1e9, rel=tolerance)
        assert figures(rows, network, "fedprox", 0.5, "all")[2] == pytest.approx(macs / 2)


def test_vgg16_at_half_of_all_channels_is_the_papers(rows):
    up, down, macs = figures(rows, "vgg16", "ca-hfp", 0.5, "all")
    assert up == down == pytest.approx(3751, abs=1)
    assert up == pytest.approx(PAPER["vgg16", "ca-hfp"][0] / 1e3, rel=0.06)
    assert macs == pytest.approx(PAPER["vgg16", "ca-hfp"][2] / 1e9, rel=0.02)
    assert figures(rows, "vgg16", "dapperfl", 0.5, "all")[:2] == (up, pytest.approx(14987, abs=1))
    assert figures(rows, "vgg16", "ca-hfp", 0.5, "inner") == (up, down, macs)


@pytest.mark.parametrize(
    ("ratio", "rule", "kept", "macs"),
    [
        (0.25, "all", 263.3, 4.99),
        (0.25, "inner", 351.4, 6.66),
        (0.5, "all", 117.6, 2.23),
        (0.5, "inner", 235.9, 4.47),
        (0.75, "all", 29.9, 0.56),
        (0.75, "inner", 120.5, 2.28),
    ],
)
def test_resnet32_under_both_rules(rows, ratio, rule, kept, macs):
    up, down, work = figures(rows, "resnet32", "fedmp", ratio, rule)
    assert up == down == pytest.approx(kept, abs=0.1)
    assert work == pytest.approx(macs, abs=0.01)


def test_the_papers_resnet32_is_nearest_to_a_quarter_of_all_channels(rows):
    paper = PAPER["resnet32", "ca-hfp"][0] / 1e3
    rules = [(ratio, rule) for ratio in (0.25, 0.5, 0.75) for rule in ("all", "inner")]
    nearest = min(rules, key=lambda key: abs(figures(rows, "resnet32", "ca-hfp", *key)[0] - paper))
    assert nearest == (0.25, "all")


def test_the_committed_data_file_has_these_figures(rows):
    committed = [{name: line[name] for name in line if name != "commit"} for line in read(DATA)]
    assert committed == [line for network in rows for line in lines(rows[network])]


def test_other_networks_and_rules_are_refused():
    with pytest.raises(InputError, match=r"unknown network of the paper 'vgg'; did you mean vgg16\?"):
        paper_costs("vgg")
    with pytest.raises(InputError, match="unknown rule 'some'"):
        submodel(None, None, 0.5, "some")
