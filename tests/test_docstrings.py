"""What the three packages export is their API: each name has a docstring whose examples run."""

import doctest
import importlib
import inspect
import warnings

import pytest
import torch

from hfp.importance import registry
from hfp.layers import table

PACKAGES = ("hfp", "hfp.reconstruct", "hfp.importance")
CONSTANTS = {"hfp.reconstruct.AGGREGATION_RULES", "hfp.importance", "hfp.language", "hfp.reconstruct"}


def _exported():
    for package in PACKAGES:
        module = importlib.import_module(package)
        yield from ((f"{package}.{name}", getattr(module, name)) for name in module.__all__)


NAMES = {name: value for name, value in _exported() if name not in CONSTANTS}


@pytest.fixture(autouse=True)
def _registries_put_back(monkeypatch):
    """Examples may register criteria and layers, which nobody else shall meet."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(table, "_TABLE", dict(table._TABLE))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_a_docstring_with_an_example_that_runs(name, tmp_path, monkeypatch):
    value = NAMES[name]
    own = "__doc__" in vars(value) or inspect.isfunction(value)
    assert own and inspect.getdoc(value), f"{name} has no docstring of its own"
    examples = _examples(value, name)
    assert examples, f"the docstring of {name} has no example (>>>)"
    monkeypatch.chdir(tmp_path)
    if any("import transformers" in part.source or "from transformers" in part.source for part in examples[0].examples):
        pytest.importorskip("transformers", reason="the transformers extra is not installed")
    _run(examples)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_say_what_lives_where_and_their_examples_run(package):
    module = importlib.import_module(package)
    assert module.__doc__
    _run(_examples(module, package))


def test_an_example_that_gives_something_else_is_noticed():
    def wrong():
        """>>> 1 + 1
        3
        """

    with pytest.raises(AssertionError, match="Expected"):
        _run(_examples(wrong, "wrong"))


def _examples(value, name):
    found = doctest.DocTestFinder(recurse=False).find(value, name)
    return [example for example in found if example.examples]


def _run(examples):
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        failed = sum(runner.run(example, out=report.append).failed for example in examples)
    assert not failed, "".join(report)
