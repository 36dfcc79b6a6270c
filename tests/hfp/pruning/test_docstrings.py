"""The names that a user imports, and the examples in their docstrings."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

import hfp


def test_there_is_one_save_pruned():
    assert hfp.save_pruned is hfp.reconstruct.save_pruned


@pytest.mark.parametrize("module", ["hfp.pruning.budget", "hfp.pruning.prune", "hfp.reconstruct.files.pruned_file"])
def test_examples_in_docstrings_run(module):
    found = doctest.testmod(import_module(module))
    assert found.attempted > 0
    assert found.failed == 0
