"""The names that a user imports."""

from __future__ import annotations

import hfp


def test_there_is_one_save_pruned():
    assert hfp.save_pruned is hfp.reconstruct.save_pruned
