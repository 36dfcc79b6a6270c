"""``hfp flower up``: paths are taken from where the command was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from hfp.commands.flower import paths_of_app, with_absolute_paths
from hfp.errors import InputError


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("name", ["out", "resume", "data-root", "weights", "keys"])
def test_relative_paths_of_a_run_are_taken_from_where_the_command_was_started(name, quote, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = with_absolute_paths(f"rounds=2 {name}={quote}runs/mine{quote} clients=3")
    assert made == f'rounds=2 {name}="{tmp_path / "runs/mine"}" clients=3'


def test_absolute_and_empty_paths_and_other_settings_stay():
    for config in ('out="/data/mine"', 'out=""', 'method="ca-hfp" about="x"', "rounds=3"):
        assert with_absolute_paths(config) == config


def test_relative_paths_in_the_apps_own_configuration_are_made_absolute(tmp_path, monkeypatch):
    app = tmp_path / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text('[tool.flwr.app.config]\nout = "runs/mine"\nresume = ""\nrounds = 3\n')
    monkeypatch.chdir(tmp_path)
    assert paths_of_app(app) == [f'out="{tmp_path / "runs/mine"}"']
    assert paths_of_app(None) == []


def test_an_app_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "pyproject.toml").write_text("not [toml")
    with pytest.raises(InputError, match=r"pyproject.toml can't be read"):
        paths_of_app(Path(tmp_path))
