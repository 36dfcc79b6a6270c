"""The site of several versions lists them, and leads to the newest release."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PUBLISH = Path(__file__).parents[1] / "docs" / "publish.py"


@pytest.fixture
def publish():
    spec = importlib.util.spec_from_file_location("publish", PUBLISH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_version(site: Path, name: str, *pages: str) -> None:
    for page in ("index", *pages):
        path = site / name / f"{page}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (site / name / "objects.inv").write_text("")


def listed(site: Path) -> list[dict]:
    text = (site / "versions.js").read_text()
    return json.loads(text.removeprefix("window.hfpVersions = ").removesuffix(";\n"))


def test_versions_are_listed_from_the_newest_with_their_pages(publish, tmp_path):
    for name in ("0.9", "0.10", "main", "0.9.new"):
        write_version(tmp_path, name, "how-to/save", "_static/page")
    (tmp_path / "other").mkdir()
    publish.write_list(tmp_path)
    found = [(one["name"], one["newest"]) for one in listed(tmp_path)]
    assert found == [("0.10", True), ("0.9", False), ("main", False)]
    assert listed(tmp_path)[0]["pages"] == ["how-to/save", "index"]
    assert "url=0.10/index.html" in (tmp_path / "index.html").read_text()


def test_a_site_without_a_release_leads_to_what_it_has(publish, tmp_path):
    write_version(tmp_path, "main")
    publish.write_list(tmp_path)
    assert "url=main/index.html" in (tmp_path / "index.html").read_text()
    assert listed(tmp_path)[0]["newest"] is False


def test_an_earlier_build_of_a_version_gives_way_when_the_new_one_is_whole(publish, tmp_path, monkeypatch):
    write_version(tmp_path, "main", "gone")

    def fails(*_, **__):
        raise RuntimeError("warnings are errors")

    monkeypatch.setattr(publish.subprocess, "run", fails)
    with pytest.raises(RuntimeError, match="warnings are errors"):
        publish.build(tmp_path / "main")
    assert (tmp_path / "main" / "gone.html").exists()
    built = lambda command, check: write_version(tmp_path, Path(command[-1]).name)  # noqa: E731
    monkeypatch.setattr(publish.subprocess, "run", built)
    publish.build(tmp_path / "main")
    assert publish.pages(tmp_path / "main") == ["index"]
    assert publish.versions(tmp_path) == ["main"]


def test_folders_have_names_that_are_safe_in_addresses(publish, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["publish.py", str(tmp_path), "--name", "../up"])
    with pytest.raises(SystemExit):
        publish.main()
    assert "found '../up'" in capsys.readouterr().err
