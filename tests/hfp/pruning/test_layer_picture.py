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
