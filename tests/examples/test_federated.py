"""The federated examples run, at a tiny size, and show what they should."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
from example_modules import forget_examples

from hfp.data import Dataset, datasets, load_dataset, make_dataset, register_dataset
from hfp.errors import InputError
from hfp.methods import methods

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ("--rounds", "1", "--images", "60")


@pytest.fixture(autouse=True)
def names_that_examples_register(monkeypatch):
    """What an example makes known is forgotten again; methods are loaded first, since each registers only once."""
    methods()
    for module, names in (("hfp.methods.interface.registry", "_METHODS"), ("hfp.data.load", "_LOADERS")):
        monkeypatch.setattr(f"{module}.{names}", dict(getattr(sys.modules[module], names)))
    forget_examples()


def run(name: str, monkeypatch, *words: str) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_custom_method(monkeypatch, capsys):
    run("custom_method.py", monkeypatch, *TINY)
    shown = capsys.readouterr().out
    assert [line.split(": ")[0] for line in shown.splitlines()] == ["delta-w", "ca-hfp", "fedmp"]
    assert all(0 <= float(line.split()[1]) <= 100 for line in shown.splitlines())
    assert "delta-w" in [method.name for method in methods()]


def test_custom_dataset(monkeypatch, capsys):
    run("custom_dataset.py", monkeypatch, *TINY)
    assert "% of the test patches after 1 rounds" in capsys.readouterr().out
    patches = load_dataset("photographs")
    assert (patches.classes, patches.shape) == (("china", "flower"), (3, 16, 16))
    assert (len(patches.train), len(patches.test)) == (2 * 26 * 30, 2 * 26 * 10)


def test_a_data_set_of_ones_own_has_a_name_of_its_own():
    def load(request) -> Dataset:
        digits = load_dataset("digits")
        return make_dataset(request.name, digits.train, digits.test, digits.classes)

    register_dataset("mine", load)
    assert "mine" in datasets()
    assert load_dataset("mine").name == "mine"
    with pytest.raises(InputError, match="digits is one of hfp's own data sets; give yours another name"):
        register_dataset("digits", load)


def check_paper(tmp_path, monkeypatch, *words):
    page = tmp_path / "new" / "page.md"
    run(
        "paper.py",
        monkeypatch,
        "--dataset",
        "digits",
        "--size",
        "minutes",
        *TINY,
        *words,
        "--out",
        str(tmp_path / "out"),
        "--page",
        str(page),
    )
    text = page.read_text()
    for name in [part.split(")")[0] for part in text.split("](")[1:]]:
        assert "prefers-color-scheme" in (page.parent / name).read_text()
    return text


def test_the_paper_s_studies_are_ones_that_can_be_run(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found = runpy.run_path(str(EXAMPLES / "paper.py"))["studies"]({"dataset": "fmnist"}, (0, 1))
    assert {name: len(list(study.comparison.cells())) for name, study in found.items()} == {
        "table-1": 54, "table-2": 42, "additions": 48, "fixed": 36, "first-rounds": 24, "unequal": 36, "ratios": 40,
        "ranks": 40,
    }  # fmt: skip


def test_a_cell_of_the_paper_s_tables_that_was_not_run_says_so_and_one_that_was_is_not_run_again(
    tmp_path, monkeypatch, capsys
):
    words = ("--studies", "table-1", "--methods", "fedavg,ca-hfp", "--alphas", "1")
    check_paper(tmp_path, monkeypatch, *words)
    page = tmp_path / "new" / "page.md"
    data = page.with_suffix(".csv")
    fedavg, ca_hfp = csv.DictReader(data.read_text().splitlines())
    assert float(ca_hfp["difference"]) == pytest.approx(float(ca_hfp["accuracy"]) - float(fedavg["accuracy"]))
    assert (fedavg["difference"], fedavg["seeds"], ca_hfp["seeds"]) == ("", "1", "1")
    assert "fedavg,1,ratio 50%,not run" not in data.read_text()
    published = tmp_path / "tables.csv"
    published.write_text(
        "study,model,dataset,variant,alpha,paper,ours\n"
        "table-1,resnet8,digits-2000,fedavg,1,90.00,not run\n"
        "table-1,resnet32,digits-2000,fedavg,1,91.00,not run\n"
    )
    check_paper(tmp_path, monkeypatch, *words, "--tables", str(published))
    ours, other = csv.DictReader(published.read_text().splitlines())
    assert (ours["paper"], ours["ours"], ours["rounds"]) == ("90.00", fedavg["accuracy"], "1")
    assert (other["paper"], other["ours"], other["rounds"]) == ("91.00", "not run", "")
    results = sorted((tmp_path / "out" / "digits" / "runs").glob("*.json"))
    next(path for path in results if path.name.startswith("fedavg-")).unlink()
    monkeypatch.setattr("hfp.comparison.runs.simulate", stopped)
    capsys.readouterr()
    data.unlink()
    with pytest.raises(SystemExit, match="130"):
        check_paper(tmp_path, monkeypatch, *words)
    monkeypatch.setattr("hfp.comparison.runs.simulate", refused)
    with pytest.raises(SystemExit, match="1"):
        check_paper(tmp_path, monkeypatch, *words)
    text = page.read_text()
    assert "| fedavg | not run |" in text
    assert "| ca-hfp | not run |" not in text
    assert (page.with_name("page-rounds.csv")).read_text().count("table-1,ca-hfp,1,ratio 50%,0,1,") == 1


def stopped(*_, **__):
    raise KeyboardInterrupt


def refused(*_, **__):
    raise InputError("no time")


@pytest.mark.slow
def test_the_paper_s_figures(tmp_path, monkeypatch):
    text = check_paper(tmp_path, monkeypatch, "--studies", "ranks")
    assert "python examples/paper.py --dataset digits --size minutes --images 60 --rounds 1" in text
    assert text.count("![") == 2
    assert "| fedavg | " in text
    with pytest.raises(SystemExit, match="2"):
        run("paper.py", monkeypatch, "--studies", "table-3")


@pytest.mark.slow
def test_the_paper_s_tables(tmp_path, monkeypatch):
    text = check_paper(tmp_path, monkeypatch)
    assert text.count("\n## ") == 8
    assert text.count("![") == 3 + 3 + 3 + 2
    assert "not run" not in text
    for name in ("curvature, without", "Δw, with", "ca-hfp-paper", "prunefl"):
        assert f"| {name} |" in text
