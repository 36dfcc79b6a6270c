"""Running a comparison: what is kept, taken up again, and what happens to failures."""

import json
import os
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs import OF_THE_MACHINE

import hfp
from hfp.commands import compare as command
from hfp.commands.arguments.compare import check
from hfp.commands.cli import build_parser, main
from hfp.comparison import runs as compare_runs
from hfp.comparison.definition import Comparison, Variant, variants_of
from hfp.comparison.runs import ComparisonFolder, default_jobs, missing, run_missing
from hfp.data import load
from hfp.errors import InputError
from hfp.methods.ca_hfp import CAHFP

TINY = {"rounds": 1, "train_images": 60, "clients": 3, "batch_size": 8, "head_start": 1.0}
WORDS = [
    *("compare", "--batch-size", "8", "--train-images", "60", "--clients", "3", "--rounds", "1", "--head-start", "1"),
    *("--jobs", "1"),
]
BROKEN = Variant("broken", {"method": "fedavg", "learning_rate": 1e6, "head_start": 10.0})


def tiny(*variants, seeds=(0,)):
    return Comparison(variants or variants_of(["ca-hfp", "fedavg"]), TINY, seeds=seeds)


def run_all(comparison, folder, jobs=1):
    rounds, cells = [], []
    folder.describe(comparison)
    failures = run_missing(comparison, folder, jobs, lambda: rounds.append(1), cells.append)
    return len(rounds), [cell.variant for cell in cells], failures


def test_finished_runs_are_kept_and_not_repeated(tmp_path):
    folder, comparison = ComparisonFolder(tmp_path / "out"), tiny()
    assert run_all(comparison, folder) == (2, ["ca-hfp", "fedavg"], [])
    assert run_all(comparison, folder) == (0, [], [])
    assert run_all(tiny(seeds=(0, 1)), ComparisonFolder(tmp_path / "out"))[1] == ["ca-hfp", "fedavg"]
    for cell in comparison.cells():
        result = folder.load(cell.experiment)
        assert len(result["history"]) == 1
        assert "clients" not in result["history"][0]
        assert result["experiment"]["method"] == cell.variant


def test_damaged_and_foreign_results_are_run_again(tmp_path):
    folder, comparison = ComparisonFolder(tmp_path / "out"), tiny(*variants_of(["fedavg"]))
    run_all(comparison, folder)
    (path,) = (tmp_path / "out/runs").iterdir()
    text = path.read_text()
    for damaged in (text[:-40], "[]", text.replace('"rounds": 1', '"rounds": 2')):
        path.write_text(damaged)
        assert len(missing(comparison, folder)) == 1
    path.write_text(text)
    assert missing(comparison, folder) == []


def test_a_run_without_a_readable_checkpoint_says_how_to_start_it_anew(tmp_path):
    folder, comparison = ComparisonFolder(tmp_path / "out"), tiny(*variants_of(["fedavg"]))
    folder.describe(comparison)
    (cell,) = comparison.cells()
    kept = folder.unfinished(cell.experiment)
    compare_runs.simulate(cell.experiment, resume=kept)
    for file in kept.glob("checkpoint*"):
        file.write_bytes(file.read_bytes()[:-40])
    (failure,) = run_missing(comparison, folder, 1, lambda: None, lambda _: None, 1)
    assert failure.reason.endswith(f"; remove {kept} to start this run anew")
    shutil.rmtree(kept)
    assert run_missing(comparison, folder, 1, lambda: None, lambda _: None, 1) == []


def test_where_the_data_lies_is_no_part_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_LOADERS", {"mine": lambda request: load.load_dataset("digits", limit=request.limit)})
    here, there = (
        Comparison(variants_of(["fedavg"]), {**TINY, "dataset": "mine", "data_root": str(root)}, seeds=(0,))
        for root in (tmp_path, tmp_path.parent)
    )
    folder = ComparisonFolder(tmp_path / "out")
    run_all(here, folder)
    assert missing(there, folder) == []


def test_what_ratios_do_not_matter_to_is_run_once(tmp_path):
    folder = ComparisonFolder(tmp_path / "out")
    comparison = Comparison(variants_of(["fedavg", "fedprox"]), TINY, seeds=(0,), ranks=(0, 1))
    assert run_all(comparison, folder)[1] == ["fedavg", "fedprox", "fedprox"]
    assert missing(comparison, folder) == []
    by_size = {cell.size: folder.load(cell.experiment) for cell in comparison.cells() if cell.variant == "fedavg"}
    assert by_size["rank 0"] == by_size["rank 1"] is not None


def test_a_variant_without_the_dirichlet_partition_has_no_alpha():
    variants = [Variant("classes", {"method": "fedavg"}), Variant("iid", {"method": "fedavg", "partition": "iid"})]
    cells = list(Comparison(variants, TINY, seeds=(0,), alphas=(0.1, 10.0)).cells())
    assert [cell.experiment.dealt for cell in cells] == ["alpha 0.1", "iid", "alpha 10", "iid"]
    assert cells[1].experiment == cells[3].experiment


def test_a_runs_identity_has_the_methods_defaults(tmp_path, monkeypatch):
    folder, comparison = ComparisonFolder(tmp_path / "out"), tiny(*variants_of(["ca-hfp"]))
    run_all(comparison, folder)
    given = tiny(Variant("same", {"method": "ca-hfp", "options": {"warmup": CAHFP.warmup}}))
    assert missing(given, folder) == []
    monkeypatch.setattr(CAHFP.__init__, "__defaults__", (CAHFP.warmup + 1, *CAHFP.__init__.__defaults__[1:]))
    assert len(missing(comparison, folder)) == 1


def test_a_failed_run_does_not_stop_the_others(tmp_path):
    folder = ComparisonFolder(tmp_path / "out")
    rounds, cells, failures = run_all(tiny(BROKEN, *variants_of(["fedavg"])), folder)
    assert cells == ["broken", "fedavg"]
    assert [(failure.cell.variant, failure.reason[:17]) for failure in failures] == [("broken", "training diverged")]
    assert [cell.variant for cell in missing(tiny(BROKEN, *variants_of(["fedavg"])), folder)] == ["broken"]


@pytest.mark.slow
def test_processes_side_by_side_give_the_same_results(tmp_path):
    comparison = tiny(BROKEN, *variants_of(["ca-hfp", "fedavg"]))
    one, two = ComparisonFolder(tmp_path / "one"), ComparisonFolder(tmp_path / "two")
    alone = run_all(comparison, one)
    together = run_all(comparison, two, jobs=2)
    assert (together[0], sorted(together[1])) == (alone[0], sorted(alone[1]))
    assert [failure.reason for failure in together[2]] == [failure.reason for failure in alone[2]]
    for cell in comparison.cells():
        mine, theirs = one.load(cell.experiment), two.load(cell.experiment)
        for result in (mine, theirs):
            for record in (result or {}).get("history", ()):
                for name in OF_THE_MACHINE:
                    del record[name]
        assert mine == theirs


def test_a_result_says_which_device_made_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"the GPU that is {device}")
    run = hfp.simulate(next(tiny().cells()).experiment)
    assert compare_runs.result_of(run)["device"] == "cpu"
    elsewhere = replace(run, experiment=replace(run.experiment, device="cuda:1"))
    assert compare_runs.result_of(elsewhere)["device"] == "the GPU that is cuda:1"


def test_one_process_a_core_but_not_on_a_gpu(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert default_jobs(list(tiny(seeds=(0, 1)).cells())) == 4
    assert default_jobs(list(tiny(seeds=range(20)).cells())) == 8
    cells = list(Comparison(variants_of(["fedavg"]), {**TINY, "device": "cuda"}).cells())
    assert default_jobs(cells) == 1


def test_no_more_runs_go_on_at_once_than_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hfp.commands.compare.run_missing", lambda *_: [])
    main([*WORDS, "--methods", "fedavg", "--seeds", "3", "--jobs", "1000000", "--out", str(tmp_path / "out")])
    assert "3 runs of 1 variants, 0 done; 3 at a time" in " ".join(capsys.readouterr().out.split())


def test_the_command_writes_a_table_and_a_page(tmp_path, capsys):
    out = tmp_path / "out"
    words = [*WORDS, "--methods", "ca-hfp,fedavg", "--option", "ca-hfp.warmup=1", "--seeds", "2", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [row["variant"] for row in document["rows"]] == ["ca-hfp", "fedavg"]
    assert {"accuracy", "accuracy_spread", "megabytes_up", "training_gmacs"} <= document["rows"][0].keys()
    assert document["folder"] == str(out)
    assert "4 runs of 2 variants, 0 done" in captured.err
    assert sorted(path.name for path in out.iterdir()) == [
        "comparison.json", "figures", "report.html", "runs", "table.md",
    ]  # fmt: skip
    names = [path.name for path in (out / "figures").iterdir()]
    assert sorted(names) == ["alpha-1-rank-1-megabytes.svg", "alpha-1-rank-1-round.svg", "written.json"]
    assert len(list((out / "runs").iterdir())) == 4
    assert main(["compare", "--file", str(out / "comparison.json"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "4 runs of 2 variants, 4 done" in shown
    assert "rank 1, alpha 1" in shown


def test_pictures_that_a_report_no_longer_has_go_and_those_of_others_stay(tmp_path):
    folder, figures = ComparisonFolder(tmp_path), tmp_path / "figures"
    folder.write_figures({"one.svg": "<svg/>", "other.svg": "<svg/>", "changed.svg": "<svg/>"})
    (figures / "changed.svg").write_text("<svg>my own</svg>")
    (figures / "mine.svg").write_text("<svg/>")
    folder.write_figures({"one.svg": "<svg>new</svg>"})
    found = {path.name: path.read_text() for path in figures.glob("*.svg")}
    assert found == {"one.svg": "<svg>new</svg>", "changed.svg": "<svg>my own</svg>", "mine.svg": "<svg/>"}


def test_without_matplotlib_there_is_a_table_and_no_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "out"
    assert main([*WORDS, "--methods", "fedavg", "--seeds", "1", "--out", str(out)]) == 0
    assert "no page: matplotlib is missing" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["comparison.json", "runs", "table.md"]


def test_a_file_is_read_first_and_arguments_go_over_it(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[compare]\nmethods = ["fedmp"]\nseeds = 5\n[experiment]\nrounds = 9\nclients = 3\n')
    words = ["--file", str(path), "--seeds", "1", "--rounds", "2", "--ratio", "0.25,0.5", "--target", "70"]
    comparison = command.comparison_of(build_parser(["compare", *words]).parse_args(["compare", *words]))
    first = next(comparison.cells()).experiment
    assert (first.rounds, first.clients, first.ratio, first.method) == (2, 3, 0.25, "fedmp")
    assert (comparison.seeds, comparison.target, comparison.ratios) == ((0,), 70, (0.25, 0.5))
    path.write_text('[compare]\nmethods = ["fedmp"]\nratios = [0.5]\n')
    words = ["compare", "--file", str(path), "--rank", "2,3"]
    comparison = command.comparison_of(build_parser(words).parse_args(words))
    assert (comparison.ranks, comparison.ratios) == ((2, 3), ())
    with pytest.raises(InputError, match="ranks or ratios, not both"):
        words += ["--ratio", "0.5"]
        command.comparison_of(build_parser(words).parse_args(words))


def test_a_budget_in_the_arguments_goes_over_the_ranks_of_a_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[compare]\nmethods = ["fedmp"]\nranks = [1, 2]\n')
    words = ["compare", "--file", str(path), "--budget", "macs=0.5"]
    comparison = command.comparison_of(build_parser(words).parse_args(words))
    assert [name for name, _ in comparison.sizes] == ["budget"]


def test_what_the_file_says_of_the_data_is_not_taken_for_the_default(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(f'[experiment]\ndataset = "imagefolder"\ndata_root = "{tmp_path}"\n')
    words = ["compare", "--file", str(path), "--image-size", "16"]
    check(build_parser(words).parse_args(words))
    with pytest.raises(InputError, match="image_size is for imagefolder only; the images of digits are 8 wide"):
        check(build_parser(words := ["compare", "--image-size", "16"]).parse_args(words))


@pytest.mark.parametrize(("words", "seeds"), [("2", (0, 1)), ("3,1", (3, 1)), ("4,", (4,))])
def test_seeds_are_how_many_or_which(words, seeds):
    words = ["compare", "--seeds", words]
    assert command.comparison_of(build_parser(words).parse_args(words)).seeds == seeds


def test_an_interrupted_comparison_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    real, done = compare_runs.simulate, []

    def interrupted(*arguments, **settings):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **settings)

    out = tmp_path / "my study"
    monkeypatch.setattr(compare_runs, "simulate", interrupted)
    assert main([*WORDS, "--methods", "ca-hfp,fedavg", "--seeds", "1", "--out", str(out)]) == 130
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped"))
    assert shlex.split(said.split(": ")[1]) == ["hfp", "compare", "--resume", str(out)]
    monkeypatch.setattr(compare_runs, "simulate", real)
    assert main(["compare", "--resume", str(out), "--jobs", "1"]) == 0
    assert "2 runs of 2 variants, 1 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "there is no comparison in nowhere; give the folder of one to --resume"),
        (["--resume", "x", "--out", "y"], "--out must be left out with --resume, which says it too; found y"),
        (
            ["--resume", "x", "--file", "y.toml"],
            "--file must be left out with --resume, which says it too; found y.toml",
        ),
    ],
)
def test_what_can_not_be_resumed_is_one_line(words, message, capsys):
    assert main(["compare", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_failures_are_told_and_make_the_status_1(tmp_path, capsys):
    words = [*WORDS, "--methods", "fedavg", "--seeds", "1", "--learning-rate", "1e6", "--head-start", "10"]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "failed: fedavg, seed 0, rank 1, alpha 1: training diverged" in capsys.readouterr().out
    assert main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rows"] == []


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main([*WORDS, "--methods", "fedavg", "--out", str(tmp_path)]) == 2
    assert "holds something that is no comparison" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_studies_of_the_defaults_run_through_the_same_machinery(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[3] / "examples/benchmarks/federated.py"
    words = ["--study", "batch-norm", "--seeds", "1", "--train-images", "60", "--rounds", "1", "--option", "warmup=1"]
    monkeypatch.setattr(
        sys, "argv", [str(script), *words, "--out", str(tmp_path / "out"), "--data", str(tmp_path / "d.csv")]
    )
    runpy.run_path(str(script), run_name="__main__")
    written = (tmp_path / "d.csv").read_text().splitlines()
    assert written[1].startswith('batch-norm,digits,resnet8,1,1,1,10,1,"ca-hfp, reestimate",')
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| ca-hfp, reestimate", "| ca-hfp, aggregate", "| fedavg, reestimate", "| fedavg, aggregate",
    ]  # fmt: skip
    assert len(list((tmp_path / "out/runs").iterdir())) == 4
