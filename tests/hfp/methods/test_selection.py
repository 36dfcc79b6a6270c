"""How many channels of every coupled group a ratio leaves."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfp.errors import InputError
from hfp.methods.blocks.selection import keep_best, keep_random, keep_window
from hfp.methods.interface.counts import kept_counts
from hfp.reconstruct import Plan


def coupling(*linked):
    """Groups of these sizes, without a model; those of one tuple are linked."""
    names = [tuple(f"{i}.{j}" for j in range(len(sizes))) for i, sizes in enumerate(linked)]
    sizes = {
        name: size for group, many in zip(names, linked, strict=True) for name, size in zip(group, many, strict=True)
    }
    return SimpleNamespace(linked=tuple(names), sizes=sizes, plan=lambda kept: Plan(sizes, kept))


sizes = st.integers(1, 12)
linked_sizes = st.tuples(sizes, sizes, st.integers(2, 8)).map(lambda s: (s[0] * s[2], s[1] * s[2]))


@given(st.lists(linked_sizes | sizes.map(lambda s: (s + 1,)), min_size=1, max_size=4), st.floats(0, 0.49))
def test_linked_groups_keep_the_same_share(linked, ratio):
    groups = coupling(*linked)
    counts = kept_counts(groups, ratio)
    for names in groups.linked:
        shares = [counts[name] / groups.sizes[name] for name in names]
        assert max(shares) == pytest.approx(min(shares))
        assert min(counts[name] for name in names) >= 1
        nearest = 0.5 / min(groups.sizes[name] for name in names) if len(names) == 1 else 0.25
        assert abs(shares[0] - (1 - ratio)) <= nearest + 1e-9


def test_every_choice_keeps_as_many():
    groups = coupling((12, 4), (6,))
    scores = {name: torch.arange(size).flip(0) for name, size in groups.sizes.items()}
    expected = {"0.0": 9, "0.1": 3, "1.0": 4}
    drawn = keep_random(groups, 0.3, torch.Generator().manual_seed(0))
    assert {name: len(kept) for name, kept in drawn.kept.items()} == expected
    best = keep_best(groups, 0.3, scores)
    assert dict(best.kept) == {name: tuple(range(count)) for name, count in expected.items()}
    window = keep_window(groups, 0.25, start=10)
    assert dict(window.kept) == {"0.0": (0, 1, 2, 3, 4, 5, 6, 10, 11), "0.1": (0, 2, 3), "1.0": (0, 1, 2, 4, 5)}


def test_groups_whose_sizes_have_nothing_in_common_stay_whole():
    assert kept_counts(coupling((3, 8)), 0.5) == {"0.0": 3, "0.1": 8}


def test_a_ratio_that_leaves_no_channel_names_the_groups():
    with pytest.raises(InputError, match=r"removing 0.9 of the 4 channels of 0.0 and 0.1 leaves none"):
        kept_counts(coupling((4, 8)), 0.9)
