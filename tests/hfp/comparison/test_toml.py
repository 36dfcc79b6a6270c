"""Whatever a comparison's file holds, it is a comparison or one line that says what is wrong with it."""

import contextlib
import json
import re

import pytest
from commands import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from hfp import Experiment
from hfp.commands.cli import main
from hfp.comparison.definition import axes, comparison_from, read_comparison
from hfp.errors import InputError
from hfp.settings import settings_of

SMALL = """
[compare]
methods = ["fedavg", "fjord"]
seeds = 2
alphas = [0.1, 1]
ratios = [0.25]
target = 80

[experiment]
rounds = 4
profile = ["phone", "board"]
budget = { macs = 0.5 }

[options.fjord]
widths = [0.5, 1.0]

[[variant]]
name = "mine"
method = "fedprox"
options = { mu = 0.1 }
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variant = 3", r"variant must be a list of tables, \[\[variant\]\]; found 3"),
        ("variant = [3]", r"variant must be a list of tables, \[\[variant\]\]; found \[3\]"),
        ("[variant]\nname = 'x'", "variant must be a list of tables"),
        ("[[variant]]\nname = 3", "a variant needs a name; found 3"),
        ("[experiment]\nprofile = 3", "profile must be a name or a list of names; found 3"),
        ("[experiment]\nprofile = [3]", "profile must be a name or a list of names; found 3"),
        ("[options]\nfedavg = 2", r"options of fedavg must be a table, \[options.fedavg\]; found 2"),
        ("[experiment]\ntrain_images = 'many'", "train_images must be a whole number; found 'many'"),
        ("[experiment]\ndeadline = [1.0]", r"deadline must be a number; found \[1.0\]"),
        ("[experiment]\nbudget = 3", "budget must be a table of names and numbers; found 3"),
        ("[experiment]\nbudget = { macs = 'half' }", "limit macs must be a number; found 'half'"),
        ("[experiment]\nclients = true", "clients must be a whole number; found True"),
        ("[experiment]\ndata_root = 3", "data_root must be a name; found 3"),
        ("[experiment]\nmodel = ['resnet8']", r"model must be a name; found \['resnet8'\]"),
        ("[experiment]\ndevice = 'meta'", "device must be one that computes"),
        ("[experiment]\ndownload = 2020-01-01", "download must be true or false"),
        ("[compare]\nseeds = 3000000000", "a comparison has at most 1,000 seeds"),
        (
            "[compare]\nseeds = true",
            "seeds of a comparison must be a whole number or a list of whole numbers; found True",
        ),
        ("[compare]\nseeds = [-1]", "seeds of a comparison must be at least 0; found -1"),
        ("[compare]\nmethods = 'fedavg'", "methods of a comparison must be a list of names; found 'fedavg'"),
        ("[compare]\nmethods = [3]", "methods of a comparison must be a list of names; found 3"),
        ("[compare]\nalphas = [inf]", "alphas of a comparison must be a finite number above 0; found inf"),
        ("[compare]\nbatch_norms = ['keep']", "unknown batch-norm policy 'keep'"),
        ("compare = 3", r"compare is a table of a comparison, \[compare\]; found 3"),
        ("experiment = 3", r"experiment is a table of a comparison, \[experiment\]; found 3"),
        ("options = 3", r"options is a table of a comparison, \[options\]; found 3"),
        ("[[variants]]\nname = 'a'", r"unknown table of a comparison 'variants'; did you mean variant\?"),
        ("[compare]\nseeds = 0", "a comparison needs at least one of its seeds; found 0, which is their number"),
        ("[experiment]\nweights = 'a\\u0000b'".replace("'", '"'), "no name has a null character"),
        (
            "[options.fjord]\ntemperature = 2\n[[variant]]\nname = 'mine'\nmethod = 'fedavg'",
            r"options of fjord are given, but a \[\[variant\]\] has options of its own",
        ),
        ("a = " + "[" * 20_000 + "]" * 20_000, "nests tables or lists too deeply"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_line(tmp_path, text, message, capsys):
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as refusal:
        comparison_from(read_comparison(path))
    assert len(str(refusal.value).splitlines()) == 1
    assert re.search(message, refused(capsys, "compare", "--file", str(path), "--option", "fjord.temperature=2"))


def test_a_json_file_that_is_no_table_or_too_deep_is_one_line(tmp_path):
    path = tmp_path / "comparison.json"
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match=r"must hold a table of tables; found \[1, 2\]"):
        read_comparison(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="nests tables or lists too deeply"):
        read_comparison(path)


VALUES = st.recursive(
    st.booleans() | st.integers(-3, 40) | st.integers() | st.floats() | st.text(max_size=6) | st.just("fedavg"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted(settings_of(Experiment)))
TABLES = {
    "compare": st.dictionaries(st.sampled_from(sorted(axes())), VALUES, max_size=2),
    "experiment": st.dictionaries(FIELDS, VALUES, max_size=2),
    "options": st.dictionaries(st.sampled_from(["fedavg", "fjord", "ca-hfp"]), VALUES, max_size=2),
    "variant": st.lists(st.dictionaries(FIELDS | st.just("name"), VALUES, max_size=3), max_size=2),
}


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional={name: table | VALUES for name, table in TABLES.items()}))
def test_any_document_is_a_comparison_or_is_refused(document):
    with contextlib.suppress(InputError):
        comparison_from(document)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL)), st.integers(0, 3), st.text(max_size=3)), min_size=1, max_size=3))
def test_any_edit_of_a_file_is_a_comparison_or_is_refused(tmp_path_factory, edits):
    text = SMALL
    for place, removed, inserted in edits:
        text = text[:place] + inserted + text[place + removed :]
    path = tmp_path_factory.getbasetemp() / "edited.toml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with contextlib.suppress(InputError):
        comparison_from(read_comparison(path))


@settings(max_examples=150, deadline=None)
@given(FIELDS, VALUES)
def test_any_value_given_to_an_experiment_is_taken_or_refused(name, value):
    with contextlib.suppress(InputError):
        Experiment(**{name: value})


def test_a_variants_name_is_never_markup(tmp_path, capsys, monkeypatch):
    path = tmp_path / "study.toml"
    path.write_text(
        "[compare]\nseeds = 1\n[experiment]\nrounds = 1\nclients = 2\ntrain_images = 60\nhead_start = 1\n"
        "[[variant]]\nname = '[/]'\nmethod = 'fedavg'\n"
    )
    assert main(["compare", "--file", str(path), "--out", str(tmp_path / "out"), "--jobs", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"][0]["variant"] == "[/]"
    assert "[/], seed 0" in captured.err
