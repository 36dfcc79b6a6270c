"""The benchmark of criteria: its figures, its results on disk, and one network through every protocol."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hfp.data import load_dataset
from hfp.models import create_model

PROTOCOLS = ("once", "alone", "tuned", "steps", "time", "retrained", "published")
FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def study(monkeypatch):
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return lambda name: importlib.import_module(f"criteria_study.{name}")


def rows(accuracies):
    return [
        {
            "trained": "digits/a/1",
            "seed": seed,
            "protocol": "once",
            "criterion": criterion,
            "ranking": ranking,
            "ratio": ratio,
            "repair": "batch-norm",
            "accuracy": value,
        }
        for (criterion, ranking, ratio), values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_margins_are_paired_by_seed_and_against_the_best_of_torch_pruning(study):
    found = rows(
        {
            ("group-fisher", "measured", 0.5): [0.80, 0.70],
            ("l1", "global", 0.5): [0.70, 0.64],
            ("l1", "measured", 0.5): [0.79, 0.69],  # our ranking, so no opponent
            ("taylor", "layer", 0.5): [0.60, 0.60],
        }
    )
    (line,) = study("report").margins(found)
    assert (line["lead"], line["lead_spread"]) == ("+8.0", "2.8")
    assert (line["ours"], line["ranking"], line["rival"], line["rival_ranking"]) == (
        "group-fisher", "measured", "l1", "global",
    )  # fmt: skip
    shown = {
        line["accuracy"]: line["accuracy_spread"] for line in study("report").accuracies(found) if "accuracy" in line
    }
    assert shown["75.0"] == "7.1"


def test_leads_are_means_over_networks_by_seed(study):
    first = rows({("group-fisher", "measured", 0.5): [0.8, 0.7], ("l1", "global", 0.5): [0.7, 0.64]})
    second = rows(
        {
            ("group-fisher", "measured", 0.5): [0.8, 0.7],
            ("l1", "global", 0.5): [0.5, 0.5],
            ("taylor", "layer", 0.5): [0.84, 0.72],
        }
    )
    found = [*first, *({**row, "trained": "digits/b/1"} for row in second)]
    first, *_ = study("report").leads(found)
    assert first == {
        "protocol": "at once, batch-norm recalibrated", "criterion": "group-fisher", "ranking": "measured",
        "removed": "50", "lead": "+2.5", "lead_spread": "0.7", "ahead": "1", "networks": "2",
    }  # fmt: skip


def test_gains_are_paired_by_seed_and_averaged_over_networks(study):
    first = rows({("kronecker", "measured", 0.5): [0.8, 0.7, 0.1], ("l1", "measured", 0.5): [0.7, 0.64]})
    second = rows({("kronecker", "measured", 0.5): [0.8, 0.7], ("l1", "measured", 0.5): [0.76, 0.7]})
    found = [*first, *({**row, "trained": "digits/b/1"} for row in second)]
    assert list(study("report").gains(found)) == [
        {
            "choice": "kronecker in place of l1, measured ranking, batch-norm",
            "removed": "50", "gain": "+5.0", "gain_spread": "2.8",
        }
    ]  # fmt: skip


def test_a_line_cut_short_is_left_out(study, tmp_path):
    log = study("log")
    file = tmp_path / "results.jsonl"
    kept = log.Log(file, "net", 0)
    kept.add(protocol="once", ratio=0.5)
    file.write_text(file.read_text() + '{"trained": "net", "se')
    again = log.Log(file, "net", 0)
    assert not again.wants(protocol="once", ratio=0.5)
    assert again.wants(protocol="once", ratio=0.7)


def test_training_that_was_stopped_after_an_epoch_ends_as_one_that_was_not(study, tmp_path):
    training = study("training")
    data, how = load_dataset("digits"), training.Training(images=256, epochs=2)

    def stop():
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    def trained(checkpoint, change=lambda: None):
        torch.manual_seed(0)
        model = create_model("vgg-small", 10, 1, width=0.25)
        training.train(model, data, 0, how, "vgg-small", checkpoint, change)
        return model.state_dict()

    left, file = 6, tmp_path / "training.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        trained(file, stop)
    assert torch.load(file, weights_only=True)["epochs"] == 1
    assert all(torch.equal(a, b) for a, b in zip(trained(file).values(), trained(None).values(), strict=True))


def test_rank_correlation_shares_ties(study):
    spearman = study("alone").spearman
    assert spearman(torch.tensor([1.0, 2, 2, 3]), torch.tensor([10.0, 20, 20, 30])) == pytest.approx(1)
    assert spearman(torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 2, 1])) == pytest.approx(-1)
    assert spearman(torch.ones(3), torch.tensor([3.0, 2, 1])) == 0


@pytest.mark.slow
def test_one_network_through_every_protocol(study, tmp_path, monkeypatch, capsys):
    words = [
        *("--networks", "digits/vgg-small/0.25", "--seeds", "0", "--epochs", "digits=1", "--train-images", "256"),
        *("--score-images", "64", "--test-images", "64", "--alone-images", "32", "--tune-images", "64"),
        *("--cache", str(tmp_path), "--results", str(tmp_path / "r.jsonl"), "--data", str(tmp_path / "c.csv")),
        *("--protocols", *PROTOCOLS, "--retrain-epochs", "1"),
    ]
    monkeypatch.setattr(sys, "argv", ["criteria.py", *words])
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(FOLDER / "criteria.py"), run_name="__main__")
        lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
        assert {line["protocol"] for line in lines} == {"trained", *PROTOCOLS} - {"published"}
        assert {line.get("criterion") for line in lines} >= {*study("published").RECIPES}
        capsys.readouterr()
        runpy.run_path(str(FOLDER / "criteria.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == len(lines)  # nothing ran twice
    assert {file.name for file in tmp_path.glob("*.csv")} == {f"c{name}.csv" for name in study("report").FILES}
    assert ",group-fisher,measured,50," in (tmp_path / "c.csv").read_text()
    assert "digits/vgg-small/0.25,group-fisher,whole," in (tmp_path / "c_alone.csv").read_text()
    assert (tmp_path / "c.png").stat().st_size > 10_000
