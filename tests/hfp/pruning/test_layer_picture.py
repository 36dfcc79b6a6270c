"""The picture of what a pruning left of every layer."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from hfp.pruning.layer_picture import save_layer_picture
from hfp.pruning.layers_report import LayerReport

pytest.importorskip("matplotlib", reason="the examples extra is not installed")

LAYERS = [LayerReport("conv1", "Conv2d", 16, 8, (3, 3), (448, 224), None)]


def test_a_picture_that_fails_half_way_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_: Any, target: Path, **__: Any) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "layers.png"
    save_layer_picture(LAYERS, path, "a model")
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", half)
    with pytest.raises(OSError, match="No space left"):
        save_layer_picture(LAYERS, path, "another model")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("layers.png", before)]


@pytest.mark.parametrize("name", ["a$x^$", "$\\frac{$", "a\x1b[2J", 500 * "a"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    layers = [LayerReport(name, "Linear", 16, 8, (3, 3), (448, 224), None)]
    save_layer_picture(layers, tmp_path / "layers.png", name)  # a warning is an error in tests
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
