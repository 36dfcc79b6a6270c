"""What a comparison is made of: axes, variants, files."""

import json

import pytest

from hfp.comparison.definition import Comparison, Variant, comparison_from, read_comparison, variants_of
from hfp.errors import InputError
from hfp.methods import methods

TWO = variants_of(["ca-hfp", "fedavg"], {"ca-hfp": {"warmup": 1}})

STUDY = """
[compare]
methods = ["ca-hfp", "heterofl"]
seeds = 2
alphas = [0.1, 1]
ratios = [0.25, 0.5]
target = 80

[experiment]
rounds = 4
train_images = 100

[options.ca-hfp]
warmup = 1

[[variant]]
name = "ca-hfp, holders"
method = "ca-hfp"
options = { rule = "holders" }
"""


def test_cells_are_all_combinations_seed_by_seed():
    comparison = Comparison(TWO, {"rounds": 2}, seeds=(0, 7), alphas=(0.1, 1.0), ranks=(1, 3))
    cells = list(comparison.cells())
    assert len(cells) == 2 * 2 * 2 * 2
    assert [cell.seed for cell in cells] == [0] * 8 + [7] * 8
    assert [(c.variant, c.alpha, c.size) for c in cells[:4]] == [
        ("ca-hfp", 0.1, "rank 1"), ("fedavg", 0.1, "rank 1"), ("ca-hfp", 0.1, "rank 3"), ("fedavg", 0.1, "rank 3"),
    ]  # fmt: skip
    first = cells[0].experiment
    assert (first.method, first.seed, first.alpha, first.rank, first.rounds) == ("ca-hfp", 0, 0.1, 1, 2)
    assert first.options["warmup"] == 1


def test_ratios_and_budgets_go_before_ranks():
    assert [name for name, _ in Comparison(TWO, ratios=(0.25, 0.5)).sizes] == ["ratio 25%", "ratio 50%"]
    assert next(Comparison(TWO, ratios=(0.25,)).cells()).experiment.ratio == 0.25
    assert [name for name, _ in Comparison(TWO, {"budget": {"macs": 0.5}}).sizes] == ["budget"]


def test_sizes_of_different_ratios_have_different_names():
    assert [name for name, _ in Comparison(TWO, ratios=(0.07, 0.33, 0.333)).sizes] == [
        "ratio 7%", "ratio 33%", "ratio 33.3%",
    ]  # fmt: skip


def test_policies_stand_side_by_side():
    names = [variant.name for variant in variants_of(["ca-hfp", "fedavg"], batch_norms=["aggregate", "reestimate"])]
    assert names == ["ca-hfp, aggregate", "ca-hfp, reestimate", "fedavg, aggregate", "fedavg, reestimate"]
    (only,) = variants_of(["ca-hfp"], batch_norms=["aggregate"])
    assert (only.name, only.changes["batch_norm"]) == ("ca-hfp", "aggregate")


def test_a_file_says_what_is_compared(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    comparison = comparison_from(read_comparison(path))
    assert [variant.name for variant in comparison.variants] == ["ca-hfp", "heterofl", "ca-hfp, holders"]
    assert comparison.seeds == (0, 1)
    assert comparison.target == 80
    experiments = [cell.experiment for cell in comparison.cells()]
    assert len(experiments) == 3 * 2 * 2 * 2
    assert {experiment.rounds for experiment in experiments} == {4}
    assert dict(experiments[0].options) == {"warmup": 1}
    assert dict(experiments[2].options) == {"rule": "holders"}


def test_without_methods_all_are_compared_and_with_variants_alone_only_those():
    assert [v.name for v in comparison_from({}).variants] == [method.name for method in methods()]
    alone = comparison_from({"variant": [{"name": "mine", "method": "fedprox"}]})
    assert [v.name for v in alone.variants] == ["mine"]


def test_a_comparison_survives_its_folder(tmp_path):
    comparison = Comparison(
        (*TWO, Variant("late", {"method": "fedmp", "deadline": 3.0})),
        {"rounds": 3, "profile": ["phone", "board"]},
        seeds=(3, 4),
        ratios=(0.5,),
        target=70.0,
    )
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(comparison.as_dict()))
    again = comparison_from(read_comparison(path))
    assert [c.experiment for c in again.cells()] == [c.experiment for c in comparison.cells()]
    assert (again.target, again.seeds) == (70.0, (3, 4))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"compar": {}}, r"unknown table of a comparison 'compar'; did you mean compare\?"),
        ({"compare": {"seed": 2}}, r"unknown key of \[compare\] 'seed'; did you mean seeds"),
        ({"compare": 3}, r"compare is a table of a comparison, \[compare\]; found 3"),
        ({"compare": {"alphas": 0.1}}, "alphas of a comparison must be a list of numbers; found 0.1"),
        (
            {"compare": {"seeds": "two"}},
            "seeds of a comparison must be a whole number or a list of whole numbers; found 'two'",
        ),
        ({"compare": {"target": "90"}}, "target of a comparison must be a number; found '90'"),
        ({"experiment": {"rounds": "3"}}, "rounds must be a whole number; found '3'"),
        ({"compare": {"seeds": 0}}, "a comparison needs at least one of its seeds"),
        ({"compare": {"methods": []}}, "a comparison needs at least one of its variants"),
        (
            {"variant": [{"name": "one", "method": "fedavg"}, {"name": "one", "method": "fedmp"}]},
            "two variants are called 'one'; give each a name",
        ),
        (
            {"compare": {"methods": ["fedavg", "fedavg"]}},
            "a comparison has each of its methods once; found fedavg twice",
        ),
        ({"compare": {"seeds": [3, 3]}}, "a comparison has each of its seeds once; found 3 twice"),
        ({"compare": {"alphas": [0.1, 1.0, 1.0]}}, "a comparison has each of its alphas once; found 1 twice"),
        ({"compare": {"ranks": [1, 1]}}, "a comparison has each of its sizes once; found rank 1 twice"),
        ({"compare": {"ratios": [0.5, 0.5]}}, "a comparison has each of its sizes once; found ratio 50% twice"),
        ({"compare": {"methods": ["fedavgg"]}}, r"unknown method 'fedavgg'; did you mean fedavg"),
        ({"compare": {"target": 120}}, r"target of a comparison must be in \(0, 100\]; found 120"),
        ({"compare": {"ranks": [9]}}, "ranks of a comparison must be one of 0, 1, 2, 3; found 9"),
        ({"experiment": {"round": 3}}, r"unknown field of an experiment \(in base\) 'round'; did you mean rounds"),
        ({"experiment": {"alpha": 3.0}}, "alpha is an axis of the comparison; don't set it in base"),
        ({"variant": [{"name": "x", "seed": 3}]}, "seed is an axis of the comparison; don't set it in x"),
        ({"variant": [{"method": "fedavg"}]}, "a variant needs a name"),
        (
            {"compare": {"ranks": [1, 2]}, "experiment": {"budget": {"macs": 0.5}}},
            "ranks must be left out with a budget, which is the size of all clients; found 1, 2",
        ),
        (
            {"compare": {"alphas": [0.1, 1.0]}, "experiment": {"partition": "iid"}},
            "alphas must be left out without the Dirichlet partition, which alone has them; found 0.1, 1",
        ),
        (
            {"compare": {"alphas": [0.1]}, "experiment": {"partition": "iid"}},
            "alphas must be left out without the Dirichlet partition, which alone has them; found 0.1",
        ),
        (
            {"compare": {"ratios": [0.5]}, "variant": [{"name": "x", "rank": 2}]},
            "rank must be left out in x, since ratios replace ranks; found 2",
        ),
        ({"compare": {"methods": ["fedavg"]}, "options": {"ca-hfp": {}}}, "unknown method with options 'ca-hfp'"),
    ],
)
def test_wrong_comparisons_are_refused_before_any_run(document, message):
    with pytest.raises(InputError, match=message):
        comparison_from(document)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.toml", None, "can't be read: No such file"),
        ("bad.toml", "= 3", "is not what its name says"),
        ("bad.json", "{", "is not what its name says"),
        ("long.toml", f"a = {'1' * 5000}", "is not what its name says: Exceeds the limit"),
        ("long.json", f'{{"a": {"1" * 5000}}}', "is not what its name says: Exceeds the limit"),
        ("long.toml", f"a = [0x{'f' * 5000}]", "at most 64 bits; found a whole number of 20,000 bits"),
        ("long.toml", f"a = {2**63}", "at most 64 bits; found 9223372036854775808"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_comparison(tmp_path / name)
