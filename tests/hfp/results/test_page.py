"""A run's page has its curves, clients, masks and coverage, opens from disk, and trusts nothing in the folder."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import hfp
from hfp.commands.cli import main
from hfp.results import page
from hfp.results.files import CONFIGURATION, METRICS, PLANS
from hfp.results.page import charts_of, clients_of, coverage_of, masks_of, run_page

pytest.importorskip("matplotlib", reason="the examples extra is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    words = ["--clients", "3", "--rounds", "2", "--train-images", "90", "--head-start", "1", "--rank", "2", "--json"]
    assert main(["run", *words, "--personal", "1", "--diagnostics", "--out", str(path)]) == 0
    return path


def history_of(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def pixels(picture):
    data = base64.b64decode(picture.data.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))[..., 3] / 255


def test_a_run_writes_its_page_and_inspect_writes_the_same(folder, tmp_path):
    assert main(["inspect", str(folder), "--html", str(tmp_path / "page.html")]) == 0
    written = (folder / "page.html").read_text()
    assert (tmp_path / "page.html").read_text() == written
    for title in ("Accuracy by round", "Accuracy by traffic", "Loss by round", "On data like the clients"):
        assert title in written
    assert not re.search(r"<script|src=\"(?!data:)|<link|url\((?!#)", written)


def test_masks_are_the_channels_that_clients_trained_last(folder):
    saved = hfp.load_run(folder)
    pictures = {picture.name: pixels(picture) for picture in masks_of(folder)}
    assert len(pictures) > 3
    for client in range(3):
        masks = saved.submodel(client).index_map.masks()
        for name, picture in pictures.items():
            mask = masks[f"{name}.weight"]
            assert picture[client].tolist() == mask.flatten(1).any(1).double().tolist()


def test_the_curve_against_traffic_ends_at_the_bytes_of_the_run(folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(page, "line_chart", lambda title, x, y, lines: drawn.update({title: lines}))
    charts_of(history_of(folder))
    lines = history_of(folder)
    moved = sum(line["bytes_up"] + line["bytes_down"] for line in lines)
    once = lines[-1]["statistics_bytes_up"] + lines[-1]["statistics_bytes_down"]
    assert once > 0
    assert drawn["Accuracy by traffic"][0].points[-1][0] == pytest.approx((moved + once) / 1e6)


def test_coverage_is_that_of_the_diagnostics(folder):
    history = history_of(folder)
    found = pixels(coverage_of(history))
    expected = [
        [line["diagnostics"]["coverage"][name] for line in history] for name in history[0]["diagnostics"]["coverage"]
    ]
    np.testing.assert_allclose(found, expected, atol=1 / 255)
    assert coverage_of([{**line, "diagnostics": None} for line in history]) is None


def test_clients_are_shown_as_they_were_last_heard_of(folder):
    history = history_of(folder)
    history[1]["clients"][2] |= {"status": "dropped", "loss": 0.0}
    rows = clients_of(history)
    assert [row.client for row in rows] == [0, 1, 2]
    assert (rows[2].lost, rows[2].asked) == ("1 dropped", 2)
    assert rows[2].loss == history[0]["clients"][2]["loss"]
    assert rows[1].own == history[1]["personal"]["clients"][1]["own"]


def test_of_a_client_that_was_never_heard_of_nothing_is_said_that_it_did(folder):
    history = history_of(folder)
    for line in history:
        line["clients"][2] |= {"status": "dropped", "loss": 0.0, "parameters": 0}
    (row,) = (row for row in clients_of(history) if row.client == 2)
    assert (row.loss, row.parameters, row.lost) == (None, None, "2 dropped")


def test_a_round_without_replies_has_a_column_in_the_picture_of_coverage(folder):
    history = history_of(folder)
    del history[1]["diagnostics"]
    assert pixels(coverage_of(history))[:, 1].tolist() == [0.0] * len(history[0]["diagnostics"]["coverage"])


def test_rounds_that_were_not_tested_leave_the_curves_whole(folder):
    history = history_of(folder)
    for line in history[:-1]:
        line["accuracy"] = line["loss"] = line["f1"] = line["personal"] = None
    assert len(charts_of(history)) == 4
    for line in history:
        del line["personal"], line["f1"]
    assert len(charts_of(history)) == 3


def copied(folder, tmp_path, name, text):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_text(text)
    return tmp_path


def test_names_in_the_folder_are_text_and_no_markup(folder, tmp_path):
    text = (folder / METRICS).read_text().replace('"phone"', '"<script>x</script>"')
    plans = json.loads((folder / PLANS).read_text())
    plans["sizes"]["<b>"] = 4
    plans["clients"]["0"]["kept"]["<b>"] = [0, 1]
    changed = copied(folder, tmp_path, METRICS, text)
    (changed / PLANS).write_text(json.dumps(plans))
    assert "<script>" not in run_page(changed)
    assert "<b><b>" not in run_page(changed)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (METRICS, "{}\n"),
        (METRICS, '{"round": 1, "clients": 3}\n'),
        (METRICS, '{"round": 1, "accuracy": "high"}\n'),
        (CONFIGURATION, "[]"),
        (PLANS, '{"format": 1, "sizes": {"a": -1}, "clients": {}}'),
        (PLANS, '{"format": 1, "clients": {}}'),
    ],
)
def test_damaged_files_are_refused_in_one_line(folder, tmp_path, name, text):
    with pytest.raises(hfp.InputError, match="is damaged"):
        run_page(copied(folder, tmp_path, name, text))


@pytest.mark.parametrize(("name", "text"), [(METRICS, '{"accuracy": "high"}\n'), (CONFIGURATION, "[]")])
def test_a_folder_with_a_damaged_file_is_not_shown(folder, tmp_path, name, text, capsys):
    assert main(["inspect", str(copied(folder, tmp_path, name, text))]) == 2
    shown = capsys.readouterr()
    assert not shown.out and f"{name}" in shown.err and "is damaged" in shown.err and shown.err.count("\n") == 1
