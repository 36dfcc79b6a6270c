"""What tests of the command line share."""

from __future__ import annotations

from hfp.commands.cli import main


def refused(capsys, *words: str) -> str:
    """The one line that a wrong input gets."""
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err
