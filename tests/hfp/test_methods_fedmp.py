"""FedMP: l1 norms of filters, the same ratio everywhere, residual recovery and a plain mean."""

import pytest
import torch
from federated import assigned, begin, dense, held, one_round, setting_of, small_network

from hfp.methods import create_method

WRITERS = {
    "stem.0": ["stem.0.weight", "blocks.0.second.0.weight"],
    "blocks.0.first.0": ["blocks.0.first.0.weight"],
    "blocks.1.first.0": ["blocks.1.first.0.weight"],
    "blocks.1.second.0": ["blocks.1.second.0.weight", "blocks.1.shortcut.0.weight"],
    "blocks.2.second.0": ["blocks.2.second.0.weight", "blocks.2.shortcut.0.weight"],
}
"""The layers whose filters make the channels of some of the coupled groups of the small network."""


@pytest.fixture(scope="module")
def setting():
    model = small_network()
    return model, setting_of(model)


def test_clients_get_the_filters_of_largest_l1_norm(setting):
    model, setting = setting
    method = create_method("fedmp")
    state = begin(model, method, setting)
    found = 0
    for name in setting.groups.names:
        layers = next((w for w in WRITERS.values() if f"{name}.weight" in w), None)
        if layers is None:
            continue
        found += 1
        norms = sum(state.weights[layer].abs().flatten(1).sum(1) for layer in layers)
        for client in setting.clients:
            kept = method.plan(setting, state, client).kept[name]
            expected = norms.argsort(descending=True)[: round((1 - client.ratio) * len(norms))]
            assert kept == tuple(sorted(expected.tolist()))
    assert found == len(WRITERS)


def test_recovered_models_count_all_the_same(setting):
    model, setting = setting
    method = create_method("fedmp")
    state = begin(model, method, setting)
    updates, after = one_round(setting, method, state)
    for name, before in state.weights.items():
        recovered = []
        for update in updates:
            residual = before.double() * ~held(update, name)
            recovered.append(residual + dense(update, name, torch.zeros_like(before)).double())
        expected = sum(recovered) / len(recovered)
        expected = expected if before.is_floating_point() else expected.round()
        torch.testing.assert_close(after.weights[name].double(), expected, rtol=1e-12, atol=1e-12)
        nobody = ~torch.stack([held(u, name) for u in updates]).any(0)
        assert torch.equal(after.weights[name][nobody], before[nobody])


def test_norms_are_those_of_the_new_weights(setting):
    model, setting = setting
    method = create_method("fedmp")
    _, after = one_round(setting, method, begin(model, method, setting))
    norms = after.weights["blocks.0.first.0.weight"].abs().flatten(1).sum(1)
    torch.testing.assert_close(after.memory["blocks.0.first.0"].double(), norms, rtol=1e-6, atol=0)


def test_the_compact_model_goes_both_ways(setting):
    model, setting = setting
    method = create_method("fedmp")
    state = begin(model, method, setting)
    sizes = []
    for client in setting.clients:
        task = assigned(method, setting, state, client)
        sizes.append(sum(tensor.numel() for tensor in task.tensors.values()))
        assert sizes[-1] == task.index_map.kept_entries
        assert (task.values, task.known) == ({}, {})
    assert sizes[0] > sizes[1] > sizes[2]
