"""Files are written whole or not at all."""

import errno
import os

import pytest

from hfp.atomic import clear_unfinished, free_name, whole_file, write_atomically


def test_a_file_gets_its_content_and_nothing_stays_beside_it(tmp_path):
    with whole_file(tmp_path / "notes.txt") as unfinished:
        unfinished.write_text("new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("notes.txt", "new")]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_a_block_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(type(error)), whole_file(path) as unfinished:
        unfinished.write_text("ne")
        raise error
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("notes.txt", "old")]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomically(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert path.read_bytes() == b"old"


def test_an_error_names_the_file_that_was_asked_for_and_not_the_temporary_one(tmp_path):
    path, full = tmp_path / "notes.txt", (errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="notes.txt") as caught, whole_file(path):
        raise OSError(*full)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    (tmp_path / "folder").mkdir()
    for refused in (tmp_path / "missing" / "notes.txt", tmp_path / "folder"):
        with pytest.raises(OSError, match=refused.name) as caught:
            write_atomically(refused, b"new")
        assert (caught.value.filename, caught.value.filename2) == (str(refused), None)
    with pytest.raises(OSError, match="other.txt") as caught, whole_file(path):
        raise OSError(*full, "other.txt")
    assert caught.value.filename == "other.txt"


def test_what_interrupted_writes_left_is_cleared_away_also_in_folders(tmp_path):
    (tmp_path / "run" / "clients").mkdir(parents=True)
    strays = [tmp_path / "run" / f".{name}.{32 * 'a'}.tmp" for name in ("global.safetensors", "clients/x")]
    strays[1] = tmp_path / "run" / "clients" / f".client-0.safetensors.{32 * 'b'}.tmp"
    for stray in strays:
        stray.write_bytes(b"half")
    clear_unfinished(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["clients"]


def test_a_folder_with_a_dot_in_its_name_gets_the_number_at_the_end(tmp_path):
    (tmp_path / "Llama-3.2").mkdir()
    assert free_name(tmp_path / "Llama-3.2").name == "Llama-3.2-2"
    (tmp_path / "notes.v1.txt").touch()
    assert free_name(tmp_path / "notes.v1.txt").name == "notes.v1-2.txt"
