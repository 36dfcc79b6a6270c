"""Submodels that grow over the rounds: which ratio a client has when, for every method that takes ratios."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfp import Experiment, InputError, simulate
from hfp.federation.setup import set_up

SMALL = Experiment(train_images=80, clients=2, rounds=4, head_start=1.0, ratio=(0.25, 0.75), first_ratio=0.75)


@given(own=st.floats(0, 0.99), first=st.floats(0, 0.99), growth=st.floats(0.1, 1), rounds=st.integers(1, 30))
def test_submodels_only_grow_and_end_at_their_own_size(own, first, growth, rounds):
    experiment = Experiment(rounds=rounds, first_ratio=first, growth=growth)
    ratios = [experiment.ratio_in(round, own) for round in range(rounds + 1)]
    assert ratios[0] == pytest.approx(max(own, first))
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == own
    assert min(ratios) == own


def test_without_a_first_ratio_a_client_keeps_its_own():
    assert {Experiment(rounds=5).ratio_in(round, 0.4) for round in range(5)} == {0.4}


@pytest.mark.parametrize("method", ["ca-hfp", "heterofl", "fedmp", "dapperfl", "fiarse", "fedprox"])
def test_every_method_trains_the_submodels_of_the_rounds_ratio(method):
    run = simulate(dataclasses.replace(SMALL, method=method))
    ratios = [[client.ratio for client in record.clients] for record in run.history]
    assert ratios == [[0.75, 0.75], [0.5, 0.75], [0.25, 0.75], [0.25, 0.75]]
    if method != "fedprox":
        sizes = [record.clients[0].parameters for record in run.history]
        assert sizes[0] < sizes[1] < sizes[2] == sizes[3]
        assert run.history[0].clients[1].parameters == sizes[0]
    else:
        assert run.history[0].clients[0].steps < run.history[2].clients[0].steps


def test_a_growth_without_a_first_ratio_is_refused():
    with pytest.raises(InputError, match="growth must be left out without first_ratio.*; found 0.3"):
        Experiment(growth=0.3)
    assert Experiment(growth=0.5) == Experiment()


def test_a_first_ratio_that_leaves_no_channels_is_refused():
    with pytest.raises(InputError, match="removing 0.99 of the .* leaves none"):
        set_up(dataclasses.replace(SMALL, first_ratio=0.99))


@pytest.mark.parametrize("method", ["prunefl", "fedrts"])
def test_a_first_ratio_is_refused_where_the_mask_does_not_grow(method):
    with pytest.raises(InputError, match=f"first_ratio must be left out with {method}.*; found 0.75"):
        set_up(dataclasses.replace(SMALL, method=method))


@pytest.mark.parametrize(("method", "replan"), [("ca-hfp", 0), ("heterofl", 0), ("heterofl", 4)])
def test_a_client_that_grows_does_not_keep_the_plan_of_its_smaller_submodel(method, replan):
    run = simulate(dataclasses.replace(SMALL, method=method, replan=replan))
    every_round = simulate(dataclasses.replace(SMALL, method=method))
    sizes, usual = ([[c.parameters for c in r.clients] for r in one.history] for one in (run, every_round))
    assert sizes == usual
