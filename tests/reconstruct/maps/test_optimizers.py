"""Optimizer state follows its channels."""

from __future__ import annotations

import copy

import pytest
import torch
from networks.small import images, net

from hfp.reconstruct import Coupling, IndexMap, MapError, compact_model, embed_optimizer, restrict_optimizer

OPTIMIZERS = {
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "plain": lambda params: torch.optim.SGD(params, lr=0.1),
}


def trained(kind, model, steps=2):
    optimizer = OPTIMIZERS[kind](model.named_parameters())
    for step in range(steps):
        optimizer.zero_grad()
        model(images(4, seed=step)).square().mean().backward()
        optimizer.step()
    return optimizer


def prepared(name="vgg"):
    model = net(name)
    groups = Coupling.trace(model, images(), ["head"])
    return model, groups.index_map(groups.plan({root: range(0, size, 2) for root, size in groups.sizes.items()}))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_is_cut_like_its_parameters(kind):
    model, index_map = prepared()
    full = trained(kind, model).state_dict()
    before = copy.deepcopy(full)
    sub = restrict_optimizer(full, index_map)
    names = [name for name, _ in model.named_parameters()]
    for number, name in enumerate(names):
        for key, value in full["state"].get(number, {}).items():
            expected = (
                index_map.tensors[name].restrict(value) if isinstance(value, torch.Tensor) and value.dim() else value
            )
            torch.testing.assert_close(sub["state"][number][key], expected, rtol=0, atol=0)
    assert sub["param_groups"] == full["param_groups"]
    assert str(full) == str(before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_with_the_cut_state(kind):
    """One step of the compact model with its moments equals one of the masked full model with its own."""
    model, index_map = prepared()
    optimizer = trained(kind, model)
    compact = compact_model(model, index_map)
    carried = OPTIMIZERS[kind](compact.named_parameters())
    carried.load_state_dict(restrict_optimizer(optimizer.state_dict(), index_map))
    gradients = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]
    for name, parameter in compact.named_parameters():
        parameter.grad = index_map.tensors[name].restrict(gradients[name])
    optimizer.step()
    carried.step()
    expected = index_map.restrict(model.state_dict())
    for name, parameter in compact.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_embed_puts_the_moments_back_and_leaves_the_others(kind):
    model, index_map = prepared()
    full = trained(kind, model).state_dict()
    compact = compact_model(model, index_map)
    sub = trained(kind, compact, steps=3).state_dict()
    back = embed_optimizer(sub, full, index_map)
    again = restrict_optimizer(back, index_map)
    for number, name in enumerate(name for name, _ in model.named_parameters()):
        mask = index_map.tensors[name].mask()
        for key, value in sub["state"].get(number, {}).items():
            torch.testing.assert_close(again["state"][number][key], value, rtol=0, atol=0)
            if isinstance(value, torch.Tensor) and value.dim():
                old, new = full["state"][number][key], back["state"][number][key]
                torch.testing.assert_close(new[~mask], old[~mask], rtol=0, atol=0)
            elif key == "step":
                assert back["state"][number][key] == 3
    fresh = OPTIMIZERS[kind](model.named_parameters())
    fresh.load_state_dict(back)


def test_embed_into_a_fresh_optimizer_starts_from_zero():
    model, index_map = prepared()
    sub = trained("momentum", compact_model(model, index_map)).state_dict()
    back = embed_optimizer(sub, OPTIMIZERS["momentum"](model.named_parameters()).state_dict(), index_map)
    mask = index_map.tensors["features.0.0.weight"].mask()
    assert not back["state"][0]["momentum_buffer"][~mask].any()
    assert back["state"][0]["momentum_buffer"][mask].any()


def test_optimizers_that_were_given_parameters_in_another_order_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    named = list(model.named_parameters())
    one, other = (torch.optim.SGD(each, lr=0.1).state_dict() for each in (named, named[::-1]))
    index_map = IndexMap.identity(model)
    assert embed_optimizer(one, one, index_map)["param_groups"][0]["param_names"] == [name for name, _ in named]
    with pytest.raises(MapError, match="the two optimizers were given different parameters"):
        embed_optimizer(one, other, index_map)


def test_names_may_be_given_where_the_optimizer_has_none():
    model, index_map = prepared()
    optimizer = torch.optim.SGD(list(model.parameters())[:2], lr=0.1, momentum=0.9)
    model(images()).sum().backward()
    optimizer.step()
    full = optimizer.state_dict()
    with pytest.raises(MapError, match="does not know its parameters' names; give `names`"):
        restrict_optimizer(full, index_map)
    names = [name for name, _ in model.named_parameters()][:2]
    sub = restrict_optimizer(full, index_map, names)
    assert sub["state"][0]["momentum_buffer"].shape == (4, 3, 3, 3)
    with pytest.raises(MapError, match="1 names for 2 parameters"):
        restrict_optimizer(full, index_map, names[:1])
    with pytest.raises(MapError, match="unknown to the index map: .'other'"):
        restrict_optimizer(full, index_map, [names[0], "other"])


def test_state_that_does_not_follow_its_parameter_is_refused():
    model, index_map = prepared()
    factored = torch.optim.Adafactor(model.named_parameters())
    model(images()).sum().backward()
    factored.step()
    with pytest.raises(MapError, match=r"features.0.0.weight: row_var has shape .* it can't be mapped"):
        restrict_optimizer(factored.state_dict(), index_map)


def test_optimizers_of_other_models_are_refused():
    model, index_map = prepared()
    other = trained("momentum", net("vgg")).state_dict()
    with pytest.raises(MapError, match=r"momentum_buffer has shape \[8, 3, 3, 3\], the parameter \[4, 3, 3, 3\]"):
        embed_optimizer(other, other, index_map)
    sub = trained("momentum", compact_model(model, index_map)).state_dict()
    with pytest.raises(MapError, match=r"momentum_buffer: expected shape \[8, 3, 3, 3\], got \[4, 3, 3, 3\]"):
        embed_optimizer(sub, sub, index_map)
    some = torch.optim.SGD(list(model.named_parameters())[:2], lr=0.1)
    with pytest.raises(MapError, match="given different parameters"):
        embed_optimizer(sub, some.state_dict(), index_map)


def test_the_identity_changes_nothing():
    model = net("vgg")
    full = trained("adam", model).state_dict()
    index_map = IndexMap.identity(model)
    assert str(restrict_optimizer(full, index_map)) == str(full)
    assert str(embed_optimizer(full, full, index_map)) == str(full)
