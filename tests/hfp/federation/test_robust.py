"""Robust rules against naive loops over entries and holders."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
import torch
from federated import begin, collected, context_of, made_up, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from hfp.errors import InputError
from hfp.federation.robust import defend, replacements
from hfp.federation.robust_rules import Median, NormClip, TrimmedMean, parse_rules
from hfp.methods import create_method
from hfp.reconstruct import TensorMap


@st.composite
def holdings(draw):
    """Parts of one matrix that several clients hold, with their values."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    clients = draw(st.integers(1, 7))
    number = st.floats(-5, 5).map(lambda value: round(value, 2))
    places, values = [], []
    for _ in range(clients):
        kept = draw(st.sets(st.integers(0, rows - 1), min_size=1))
        place = TensorMap((rows, columns), (torch.tensor(sorted(kept)), None))
        drawn = draw(st.lists(number, min_size=len(kept) * columns, max_size=len(kept) * columns))
        places.append(place)
        values.append(torch.tensor(drawn, dtype=torch.float64).view(place.compact_shape))
    return places, values


def naive(rule, places, values, before):
    """The definition: entry by entry, over the clients that hold it."""
    dense = [
        place.embed(value, torch.full(place.shape, torch.nan, dtype=torch.float64))
        for place, value in zip(places, values, strict=True)
    ]
    made = [part.clone() for part in dense]
    for i in range(dense[0].shape[0]):
        for j in range(dense[0].shape[1]):
            holders = [k for k, part in enumerate(dense) if not part[i, j].isnan()]
            ordered = sorted(holders, key=lambda k: float(dense[k][i, j]))  # stable, as the rule's ties are
            if len(holders) < rule.fewest_holders:
                for k in holders:
                    made[k][i, j] = before[i, j]
            elif isinstance(rule, Median):
                middle = statistics.median(float(dense[k][i, j]) for k in holders)
                for k in holders:
                    made[k][i, j] = middle
            else:
                inner = ordered[rule.trim : len(ordered) - rule.trim]
                mean = sum(float(dense[k][i, j]) for k in inner) / len(inner)
                for k in set(holders) - set(inner):
                    made[k][i, j] = mean
    return [place.restrict(part) for place, part in zip(places, made, strict=True)]


@pytest.mark.parametrize("rule", [TrimmedMean(1), TrimmedMean(2), Median()])
@settings(max_examples=40)
@given(held=holdings())
def test_every_entry_is_compared_over_its_holders(rule, held):
    places, values = held
    before = torch.arange(places[0].shape[0] * places[0].shape[1], dtype=torch.float64).view(places[0].shape)
    found, holders = replacements(rule, places, values, before)
    for mine, expected in zip(found, naive(rule, places, values, before), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
    assert torch.equal(holders, sum(place.mask().long() for place in places))


def test_the_mean_of_the_replaced_values_is_the_trimmed_mean():
    whole = TensorMap.identity((1,))
    values = [torch.tensor([value], dtype=torch.float64) for value in (1.0, 2.0, 4.0, 900.0, -900.0)]
    found, _ = replacements(TrimmedMean(1), [whole] * 5, values, None)
    assert float(torch.stack(found).mean()) == pytest.approx((1 + 2 + 4) / 3, abs=1e-12)


@pytest.fixture(scope="module")
def round_of_updates():
    method = create_method("fedavg")
    model = small_network()
    context = context_of(
        model, tuple(dataclasses.replace(context_of(model).clients[0], index=index) for index in range(5))
    )
    state = begin(model, method, context)
    return method, context, state, list(made_up(context, method, state))


def lied(update, times):
    tensors = {
        name: update.task.tensors[name] + times * (tensor - update.task.tensors[name])
        if tensor.is_floating_point()
        else tensor
        for name, tensor in update.reply.tensors.items()
    }
    return dataclasses.replace(update, reply=dataclasses.replace(update.reply, tensors=tensors))


@pytest.mark.parametrize("rules", ["trimmed-mean:1", "median", "norm-clip,trimmed-mean:1"])
def test_one_liar_moves_the_mean_no_further_than_honest_clients_do(round_of_updates, rules):
    method, context, state, honest = round_of_updates
    attacked = [lied(honest[0], -100.0), *honest[1:]]
    plain = collected(context, method, state, attacked).weights
    made = collected(context, method, state, list(defend(parse_rules(rules), state.weights, attacked).updates)).weights
    for name in context.parameters:
        values = torch.stack([update.reply.tensors[name] for update in honest[1:]])
        assert (made[name] <= values.amax(0) + 1e-9).all() and (made[name] >= values.amin(0) - 1e-9).all()
        assert (plain[name] > values.amax(0)).any() or (plain[name] < values.amin(0)).any()


def test_no_update_is_longer_than_the_median_after_clipping(round_of_updates):
    _, _, state, honest = round_of_updates

    def length(update):
        parts = [
            (tensor - update.task.tensors[name]).square().flatten()
            for name, tensor in update.reply.tensors.items()
            if tensor.is_floating_point()
        ]
        return float(torch.cat(parts).mean().sqrt())

    attacked = [lied(honest[0], 50.0), lied(honest[1], 0.1), *honest[2:]]
    middle = statistics.median(length(update) for update in attacked)
    after = defend((NormClip(1.0),), state.weights, attacked).updates
    assert [length(update) for update in after] == pytest.approx([min(length(u), middle) for u in attacked], rel=1e-9)


def test_what_too_few_hold_keeps_its_global_value_and_is_reported():
    method, model = create_method("fedmp"), small_network()
    context = context_of(model)
    state = begin(model, method, context)
    updates = list(made_up(context, method, state))
    defended = defend((TrimmedMean(1),), state.weights, updates)
    few = entries = 0
    for name in state.weights:
        if not state.weights[name].is_floating_point():
            continue
        held = sum(update.task.index_map.masks()[name].long() for update in updates)
        few += int(((held > 0) & (held < 3)).sum())
        entries += held.numel()
        for update in defended.updates:
            place = update.task.index_map.tensors[name]
            lone = place.restrict(held) < 3
            assert torch.equal(update.reply.tensors[name][lone], place.restrict(state.weights[name])[lone])
    assert defended.undefended == pytest.approx(few / entries) and 0 < defended.undefended < 1


def test_updates_given_are_not_changed(round_of_updates):
    _, _, state, honest = round_of_updates
    before = [{name: tensor.clone() for name, tensor in update.reply.tensors.items()} for update in honest]
    defend(parse_rules("norm-clip:0.5,median"), state.weights, honest)
    for update, kept in zip(honest, before, strict=True):
        assert all(torch.equal(update.reply.tensors[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mean", "robust rule"),
        ("trimmed-mean", "needs a number"),
        ("trimmed-mean:0", "at least 1"),
        ("trimmed-mean:x", "must be a number"),
        ("median:3", "takes no number"),
        ("norm-clip:-1", "above 0"),
        ("norm-clip:inf", "must be finite"),
        ("norm-clip:nan", "must be finite"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_rules(text)
