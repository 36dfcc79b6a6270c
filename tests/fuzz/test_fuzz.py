"""Readers of bytes from outside raise their documented errors and nothing else; inputs that once failed stay here."""

import random
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import mutated
from targets import Target, targets

from hfp.reconstruct import MapError

FOUND = sorted(Path(__file__).with_name("found").glob("*"))


@pytest.mark.parametrize("name", targets())
def test_what_is_fuzzed_begins_with_good_inputs(name):
    target = targets()[name]
    assert all(target.run(seed) for seed in target.seeds[:1])


@pytest.mark.parametrize("name", targets())
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_changed_inputs_raise_documented_errors_alone(name, seed):
    target, draw = targets()[name], random.Random(seed)
    target.run(mutated(draw.choice(target.seeds), draw))


@pytest.mark.parametrize("name", targets())
@settings(max_examples=10)
@given(content=st.binary(max_size=300))
def test_any_bytes_raise_documented_errors_alone(name, content):
    targets()[name].run(content)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_inputs_that_once_failed_do_not_fail_again(path):
    next(target for name, target in targets().items() if path.name.startswith(f"{name}-")).run(path.read_bytes())


def test_another_error_is_not_swallowed():
    def broken(content):
        raise KeyError(content)

    with pytest.raises(KeyError):
        Target("broken", (b"",), broken, (MapError,)).run(b"")
