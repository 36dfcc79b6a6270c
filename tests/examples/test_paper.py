"""The paper's command keeps every figure, goes on where it was stopped, and refuses in one line what can't be run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from data_files import read
from example_modules import forget_examples

import hfp
from hfp.comparison.definition import Comparison, variants_of
from hfp.methods import methods

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ["--size", "minutes", "--dataset", "digits", "--rounds", "1", "--images", "60"]
TABLE_1 = ["--studies", "table-1", "--alphas", "1"]


@pytest.fixture
def paper(monkeypatch, tmp_path):
    """Run the command in a folder of its own; returns its exit status."""
    methods()
    for module, names in (("hfp.methods.interface.registry", "_METHODS"), ("hfp.data.load", "_LOADERS")):
        monkeypatch.setattr(f"{module}.{names}", dict(getattr(sys.modules[module], names)))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    forget_examples()
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("paper")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["paper.py", *TINY, *TABLE_1, *words])
        try:
            module.main()
        except SystemExit as end:
            return end.code
        return 0

    yield run
    forget_examples()


def figures(file="runs/paper/digits.csv"):
    names = ("accuracy", "seeds", "difference")
    return {line["variant"]: tuple(line.get(name, "") for name in names) for line in read(Path(file))}


def test_what_one_command_measured_the_next_one_keeps(paper):
    assert paper("--methods", "fedavg") == 0
    before = figures()["fedavg"]
    assert before[0] != "not run"
    assert paper("--methods", "fedprox") == 0
    assert figures()["fedavg"] == before
    assert figures()["fedprox"][2] != "", "it is compared with a run of an earlier command"
    page = Path("runs/paper/digits.md").read_text()
    assert "| fedavg | " in page
    assert "| fedprox | " in page
    assert "--methods fedavg,fedprox" in page


def test_figures_of_another_folder_or_of_more_seeds_are_not_overwritten(paper):
    assert paper("--methods", "fedavg", "--seeds", "2") == 0
    before = figures()
    assert before["fedavg"][1] == "2"
    assert paper("--methods", "fedavg", "--out", "new") == 0
    assert figures() == before
    assert "2 seeds" in Path("runs/paper/digits.md").read_text()


def test_what_more_rounds_or_images_reached_stays_beside_the_paper_s_figures(paper, capsys):
    lines = {
        "fedavg": "1,90.00,80.00,60,300,1,x",
        "fedavgm": "1,90.00,70.00,6000,1,1,x",
        "fedprox": "1,91.00,not run,,,,x",
        "heterofl": "1,92.00,9.00,30,1,1,x",
    }
    Path("tables.csv").write_text(
        "study,model,dataset,variant,alpha,paper,ours,train_images,rounds,seeds,commit\n"
        + "".join(f"table-1,resnet8,digits-2000,{name},{line}\n" for name, line in lines.items())
    )
    assert paper("--methods", ",".join(lines), "--tables", "tables.csv") == 0
    fedavg, fedavgm, *new = read(Path("tables.csv"))
    assert (fedavg["ours"], fedavg["rounds"], fedavg["commit"]) == ("80.00", "300", "x")
    assert (fedavgm["ours"], fedavgm["train_images"], fedavgm["commit"]) == ("70.00", "6000", "x")
    assert [(line["ours"], line["train_images"], line["rounds"]) for line in new] == [
        (figures()[line["variant"]][0], "60", "1") for line in new
    ]
    assert "nothing is written there" not in capsys.readouterr().out


def test_a_figure_of_all_images_does_not_give_way_to_one_of_a_part(paper):
    lines = importlib.import_module("paper_tables.lines")
    assert lines._number("all") > lines._number("50000") > lines._number("6000") > lines._number("")


@pytest.mark.parametrize(
    ("result", "device"),
    [
        ({"device": "NVIDIA H200", "experiment": {"device": "cuda"}}, "NVIDIA H200"),
        ({"experiment": {"device": "cuda"}}, "cuda"),
        ({"experiment": {"device": "cpu"}}, "cpu"),
    ],
)
def test_a_line_names_the_device_of_the_run_and_not_of_the_machine_that_writes_it(paper, monkeypatch, result, device):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "the GPU of the machine that writes")
    lines = importlib.import_module("paper_tables.lines")
    record = {"round": 1, "bytes_up": 1, "accuracy": 50.0, "loss": 1.0, "train_loss": 1.0}
    runs = {("fedavg", 1.0, "rank 1"): {0: {**result, "history": [record]}}}
    asked = Comparison(variants_of(["fedavg"]), {"device": result["experiment"]["device"]})
    assert [line["device"] for line in lines.rounds_of("table-1", asked, runs)] == [device]


def test_it_is_said_that_the_paper_has_no_figure_of_this_network_and_data(paper, capsys):
    Path("tables.csv").write_text(
        "study,model,dataset,variant,alpha,paper,ours\ntable-1,vgg16,digits-2000,fedavg,1,90.00,not run\n"
    )
    before = Path("tables.csv").read_text()
    assert paper("--methods", "fedavg", "--tables", "tables.csv") == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "--tables: no figure in tables.csv is of resnet8 on digits-2000 in table-1; nothing is written there"
    )
    assert Path("tables.csv").read_text() == before
    assert " 1 round of one local epoch, and 1 seed. " in Path("runs/paper/digits.md").read_text()


def test_the_text_of_a_page_that_was_changed_by_hand_stays(paper, capsys):
    assert paper("--methods", "fedavg") == 0
    page = Path("runs/paper/digits.md")
    page.write_text(page.read_text() + "Mine.\n")
    assert paper("--methods", "fedprox") == 0
    assert page.read_text().endswith("Mine.\n")
    assert "| fedprox | " in page.read_text()
    assert "its tables alone" in capsys.readouterr().out


@pytest.mark.slow
def test_a_page_has_the_parts_of_all_commands(paper):
    assert paper("--methods", "fedavg") == 0
    assert paper("--studies", "ranks") == 0
    page = Path("runs/paper/digits.md").read_text()
    assert "## Table I" in page
    assert "## Figure 6" in page
    assert "(digits-ranks-accuracy.svg)" in page
    assert "(digits-table-1-alpha-1.svg)" in page


def test_without_reconstruction_what_no_client_holds_is_zero(paper):
    def trained(method, ratio):
        shared = {"rounds": 1, "train_images": 60, "clients": 2, "model": "resnet8"}
        return hfp.simulate(hfp.Experiment(method=method, ratio=ratio, **shared)).global_state

    half = trained("fedmp", 0.5), trained("fedmp-without", 0.5)
    weight = next(name for name, value in half[0].items() if value.ndim == 4)
    empty = [(state[weight] == 0).flatten(1).all(1).sum() for state in half]
    assert empty == [0, len(half[0][weight]) // 2]
    whole = trained("fedmp", 0.0), trained("fedmp-without", 0.0)
    assert all(torch.allclose(value, whole[1][name], atol=1e-6) for name, value in whole[0].items())


def test_channels_that_are_fixed_are_those_of_the_first_round(paper):
    fixed = next(one for one in sys.modules["paper_tables.studies"].FIXED if one.name == "fixed channels")

    def held(rounds, **changes):
        shared = {"train_images": 60, "clients": 2, "model": "resnet8", "ratio": 0.5, "head_start": 1.0}
        state = hfp.simulate(hfp.Experiment(rounds=rounds, **shared, **changes)).global_state
        return [(value != 0).flatten(1).any(1) for value in state.values() if value.ndim == 4]

    first, last, usual = held(1, **fixed.changes), held(3, **fixed.changes), held(3)
    assert all(torch.equal(*pair) for pair in zip(first, last, strict=True))
    assert all(2 * one.sum() == len(one) for one in first)
    assert all(one.all() for one in usual)


def test_a_run_that_ctrl_c_stops_goes_on(paper, monkeypatch, capsys):
    import hfp.comparison.runs as runs

    words = ("--methods", "fedavg", "--rounds", "3")
    simulate, rounds = runs.simulate, []

    def stops(experiment, tell, **more):
        def told(outcome):
            rounds.append(outcome)
            tell(outcome)
            if len(rounds) == 2:
                raise KeyboardInterrupt

        return simulate(experiment, told, **more)

    monkeypatch.setattr(runs, "simulate", stops)
    assert paper(*words) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "paper.py: stopped; the same command goes on from here"
    assert figures()["fedavg"][0] == "not run"
    assert paper(*words) == 0
    assert len(rounds) in (3, 4), "it began anew"
    assert figures()["fedavg"][0] != "not run"


def test_a_run_that_fails_is_told_by_the_exit_status(paper, monkeypatch, capsys):
    import hfp.comparison.runs as runs

    def fails(*_, **__):
        raise runs.InputError("no luck")

    monkeypatch.setattr(runs, "simulate", fails)
    assert paper("--methods", "fedavg") == 1
    assert "fedavg was not finished: no luck" in capsys.readouterr().err


def test_a_run_has_the_number_of_threads_that_is_asked_for(paper, monkeypatch, capsys):
    import hfp.comparison.runs as runs

    def fails(*_, **__):
        raise runs.InputError(f"{torch.get_num_threads()} threads")

    monkeypatch.setattr(runs, "simulate", fails)
    assert paper("--methods", "fedavg", "--threads", "2") == 1
    assert "was not finished: 2 threads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--studies nope", "unknown study 'nope'; known: table-1"),
        ("--studies table-1,table-1", "study 'table-1' is given 2 times"),
        ("--methods nope", "unknown method of table I 'nope'"),
        ("--alphas 0.5", "unknown alpha 0.5; known: 1, 0.1, 10"),
        ("--alphas abc", "argument --alphas: expected numbers with commas between them; found 'abc'"),
        ("--jobs 0", "jobs must be at least 1; found 0"),
        ("--seeds 0", "seeds must be at least 1; found 0"),
        ("--threads 0", "threads of a comparison must be in"),
        ("--checkpoint -1", "checkpoint must be at least 0; found -1"),
        ("--rounds 0", "rounds must be in [1, 1000000]; found 0"),
        ("--images -1", "train_images must be at least 1; found -1"),
        ("--device cuda:99", "device 'cuda:99' can't be used here"),
        ("--model nope", "unknown model 'nope'"),
        ("--dataset imagefolder", "needs the folder of the images: --data-root PATH"),
        ("--dataset cifar10 --data-root nowhere", "the data root nowhere is not a folder"),
        ("--page mine.txt", "page must be a file whose name ends in .md; found mine.txt"),
        ("--page file/page.md", "page file/page.md can't be written"),
        ("--page other.md", "other.csv holds no figures of this command; give another page with --page"),
        ("--page older.md", "the figures in older.csv have rounds 60, and not 1; give another page with --page"),
        ("--tables other.csv", "--tables: there are no figures of the paper in other.csv"),
        ("--tables nowhere.csv", "--tables: there are no figures of the paper in nowhere.csv"),
        (
            "--tables theirs.csv --whole-test-set",
            "--tables: the paper trains on all images; found 60: give --size paper",
        ),
        ("--out file", "output folder file/digits can't be made"),
        ("--out held", "held/digits holds something that is no comparison; give another folder with --out"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line_and_nothing_is_written(paper, words, said, capsys):
    Path("file").write_text("mine")
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("theirs.csv").write_text("study,model,dataset,variant,alpha,paper,ours\ntable-1,a,b,fedavg,1,90.00,not run\n")
    Path("older.csv").write_text("study,variant,alpha,size,accuracy,rounds\ntable-1,fedavg,1,ratio 50%,50.0,60\n")
    Path("held/digits").mkdir(parents=True)
    Path("held/digits/mine").write_text("mine")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert paper("--methods", "fedavg", *words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("paper.py: ")
    assert said in line
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
