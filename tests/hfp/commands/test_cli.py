import json
import sys
import warnings

import pytest
from commands import refused
from safetensors import safe_open

from hfp.commands import listing
from hfp.commands.cli import COMMANDS, main
from hfp.federation.rounds import Course
from hfp.models import create_model
from hfp.results.folder import read_configuration

QUICK = ["--train-images", "60", "--clients", "3", "--rounds", "2", "--option", "warmup=1"]


def test_run_writes_metrics_configuration_model_and_picture(tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["run", *QUICK, "--out", str(folder)]) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert {"accuracy", "bytes_up", "bytes_down", "training_macs", "clients"} <= lines[0].keys()
    experiment, machine = read_configuration(folder)
    assert machine == {"threads": 1, "workers": 0}
    assert (experiment.clients, experiment.options["warmup"]) == (3, 1)
    with safe_open(folder / "global.safetensors", "pt") as file:
        assert set(file.keys()) == set(create_model("resnet8", in_channels=1).state_dict())
        assert file.metadata()["model"] == "resnet8"
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == [
        "accuracy.png", "checkpoint.safetensors", "config.json", "global.safetensors", "metrics.jsonl", "model.json",
        "page.html", "plans.json",
    ]  # fmt: skip
    shown = capsys.readouterr().out
    assert "FedAvg's cost" in shown
    assert "round 2  score" in shown


def test_json_is_one_document_on_standard_output(tmp_path, capsys):
    assert main(["run", *QUICK, "--json", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert {"accuracy", "history", "bytes_up", "bytes_down", "macs", "folder"} <= document.keys()
    assert len(document["history"]) == 2
    assert document["folder"] == str(tmp_path / "out")
    assert "round 2" in captured.err


def test_a_run_goes_to_a_fresh_folder_by_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *QUICK, "--rounds", "1"]) == 0
    assert main(["run", *QUICK, "--rounds", "1"]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert "written to runs/" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    real = Course.advance

    def interrupted(course):
        if course.history:
            raise KeyboardInterrupt
        return real(course)

    monkeypatch.setattr(Course, "advance", interrupted)
    assert main(["run", *QUICK, "--rounds", "9", "--out", str(tmp_path / "out")]) == 130
    assert len((tmp_path / "out/metrics.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "out/global.safetensors").exists()
    assert "stopped after 1 of 9 rounds" in capsys.readouterr().out


def test_without_matplotlib_a_run_ends_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["run", *QUICK, "--rounds", "1", "--out", str(tmp_path / "out")]) == 0
    assert 'pip install "hfp[examples]"' in capsys.readouterr().out
    assert not (tmp_path / "out/accuracy.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--method", "ca-hpf"], "did you mean ca-hfp or ca-hfp-paper?"),
        (["run", "--dataset", "digist"], "did you mean digits"),
        (["run", "--model", "resnet9"], "unknown model 'resnet9'; did you mean"),
        (["run", "--ratio", "1.0"], "ratio must be in [0, 1)"),
        (["run", "--ratio", "abc"], "ratio must be a number or a list of numbers; found 'abc'"),
        (["run", "--ratio", "0.98"], "of the 16 channels of"),
        (["run", "--rank", "7"], "rank must be one of 0, 1, 2, 3; found 7"),
        (["run", "--alpha", "0"], "alpha must be a finite number above 0"),
        (["run", "--clients", "9999"], "9999"),
        (["run", "--threads", "0"], "threads must be between 1 and 1024; found 0"),
        (["run", "--threads", "1000000000"], "threads must be between 1 and 1024; found 1000000000"),
        (["run", "--rounds", "1000001"], "rounds must be in [1, 1000000]; found 1000001"),
        (["run", "--rounds", "1e20"], "rounds must be a whole number; found '1e20'"),
        (["run", "--option", "warmup"], "expected NAME=VALUE; found 'warmup'"),
        (["run", "--budget", "macs=half"], "limit macs must be a number; found 'half'"),
        (["run", "--budget", "bytes=100", "--train-images", "60", "--clients", "3"], "can't keep within bytes=100"),
        (["run", "--profile", "phone,bord"], "unknown device profile 'bord'; did you mean board?"),
        (["run", "--option", "wamrup=2"], "did you mean warmup?"),
        (["run", "--dataset", "imagefolder"], "--data-root"),
        (["run", "--nonsense"], "unknown option '--nonsense'"),
        (["run", "--lerning-rate", "1"], "unknown option '--lerning-rate'; did you mean --learning-rate"),
        (["run", "--lerning-rate=1"], "unknown option '--lerning-rate'; did you mean --learning-rate"),
        (["run", "folder"], "unexpected argument 'folder'"),
        (
            ["run", "--method", "fjord", "--option", 'widths=[0.5,"a"]'],
            "widths of fjord must be a list of numbers",
        ),
        (["run", "--method", "fedprox", "--option", "mu=a"], "option mu of fedprox must be a number; found 'a'"),
        (["run", "--device", "meta"], "device must be one that computes, such as cpu, cuda or cuda:1; found 'meta'"),
        (
            ["run", "--budget", "macs=0.3", "--budget", "macs=0.9"],
            "limit macs is given twice: 0.3 and 0.9",
        ),
        (
            ["run", "--option", "warm-up=1", "--option", "warm_up=2"],
            "option warm_up is given twice: 1 and 2",
        ),
        (["run", "--robust", "median,norm-clip:2,median"], "robust: median is listed twice; list each rule once"),
        (["run", "--budget", "mcas=1"], "unknown limit 'mcas'; did you mean macs?"),
        (["compare", "--methods", "fedavgg"], "unknown method 'fedavgg'; did you mean fedavg"),
        (["compare", "--option", "fedproxx.mu=1"], "unknown method 'fedproxx'; did you mean fedprox"),
        (["compare", "--option", "warmup=1"], "expected METHOD.NAME=VALUE; found 'warmup=1'"),
        (
            ["compare", "--seeds", "x"],
            "must be a whole number or a list of whole numbers; found 'x'",
        ),
        (
            ["compare", "--seeds", "1,,2"],
            "must be a whole number or a list of whole numbers; found '1,,2'",
        ),
        (["compare", "--rank", "a"], "ranks of a comparison must be a list of whole numbers; found 'a'"),
        (["compare", "--jobs", "0"], "jobs must be at least 1; found 0"),
        (["compare", "--dataset", "cifar100", "--data-root", "."], "cifar100"),
        (
            ["compare", "--option", "ca-hfp.warmup=1", "--option", "ca-hfp.warmup=2"],
            "option ca-hfp.warmup is given twice: 1 and 2; give it once",
        ),
        (["rnu"], "unknown command 'rnu'; did you mean run"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_input_is_one_line_and_status_2(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_missing_data_set_says_where_to_put_it(tmp_path, capsys):
    line = refused(capsys, "run", "--dataset", "cifar100", "--data-root", str(tmp_path))
    assert str(tmp_path) in line
    assert "--download" in line


def test_an_occupied_output_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in refused(capsys, "run", *QUICK, "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("command", "expected"), [("methods", "ca-hfp"), ("criteria", "group-fisher")])
def test_lists(command, expected, capsys):
    assert main([command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert expected in {row["name"] for row in rows}
    assert all(row["source"] for row in rows)
    assert main([command]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: hfp {command}" in capsys.readouterr().out


def test_brackets_in_what_a_registered_criterion_says_are_text(monkeypatch, capsys):
    monkeypatch.setattr(listing, "criterion_rows", lambda: [{"name": "mine", "source": "[b]us[/i]", "needs": "data"}])
    assert main(["criteria"]) == 0
    assert "[b]us[/i]" in capsys.readouterr().out


@pytest.mark.filterwarnings("always")
def test_a_warning_for_the_user_is_one_line_without_a_place_in_the_code(monkeypatch, capsys):
    def warned(arguments):
        for _ in range(2):
            warnings.warn("mind\nthe gap", stacklevel=1)
        return 0

    monkeypatch.setattr(listing, "run_methods", warned)
    assert main(["methods"]) == 0
    assert capsys.readouterr() == ("", "hfp methods: mind the gap\n")
