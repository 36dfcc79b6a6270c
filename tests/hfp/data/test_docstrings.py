"""The examples in the docstrings of the data package run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import hfp.data
from hfp.data import load

MODULES = [f"hfp.data.{module.name}" for module in pkgutil.iter_modules(hfp.data.__path__)]
WITH_EXAMPLES = {"dataset", "fingerprint", "load", "partition", "request"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_LOADERS", dict(load._LOADERS))
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert (result.attempted > 0) or (name.rpartition(".")[2] not in WITH_EXAMPLES)
