"""What every criterion with data promises about the caller's model, batches and loss."""

import copy
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from networks.criteria import data, groups, make
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from hfp.importance import CriterionError, create, describe, names

WITH_DATA = [name for name in names() if describe(name).needs == "data"]
MERGEABLE = [name for name in WITH_DATA if name not in ("hutchinson", "sampled-fisher")]  # these draw by batch
OF_LOGITS = ["group-kl", "group-loss", "sampled-fisher"]  # criteria that use classes' logits in place of any loss
OPTIONS = {"kronecker": {"fisher": "empirical", "joint": False}}  # its default draws, is of logits, and ranks


def scores(criterion, model):
    return torch.cat([criterion(group) for group in groups(model).values()])


def made(name):
    return create(name, **OPTIONS.get(name, {}))


def accumulated(name, model, batches, loss_fn=functional.cross_entropy, **options):
    criterion = made(name)
    criterion.accumulate(model, batches, loss_fn, **options)
    return criterion


def snapshot(model):
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "required": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "identity": [(id(p), id(p.grad) if p.grad is not None else None) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()),
    }


def assert_untouched(before, after):
    for key, value in before["state"].items():
        assert torch.equal(value, after["state"][key]), key
    for ours, theirs in zip(before["grads"], after["grads"], strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    for key in ("modes", "required", "identity", "hooks"):
        assert before[key] == after[key], key
    assert before["random"][:2] == after["random"][:2]
    assert torch.equal(before["random"][2], after["random"][2])


def unusual(name="residual"):
    """A model in a mixture of modes, partly frozen, with some gradients and a buffer that forward changes."""
    model = make(name).train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.full_like(model.head.weight, 3)
    model.register_buffer("calls", torch.zeros(()))
    model.register_forward_hook(lambda module, args, output: module.calls.add_(1) and None)
    return model


@pytest.mark.parametrize("name", WITH_DATA)
def test_model_and_random_state_are_left_as_they_were(name):
    model, (images, labels) = unusual(), data()
    before = snapshot(model)
    loader = DataLoader(TensorDataset(images, labels), batch_size=3, shuffle=True)
    accumulated(name, model, loader)
    assert_untouched(before, snapshot(model))


@pytest.mark.parametrize("name", WITH_DATA)
def test_model_is_left_as_it_was_when_the_loss_raises(name):
    model, (images, labels) = unusual(), data()
    before, calls = snapshot(model), []

    def loss_fn(output, target):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("broken loss")
        return functional.cross_entropy(output, target)

    criterion = made(name)
    with pytest.raises((RuntimeError, CriterionError), match=r"broken loss|nothing"):
        criterion.accumulate(model, [(images, labels)] * 3, loss_fn)
        criterion.reset()
        criterion(next(iter(groups(make("residual")).values())))
    assert_untouched(before, snapshot(model))
    assert criterion.samples == 0


def test_comparison_helper_sees_a_change():
    model = unusual()
    before = snapshot(model)
    model.calls.add_(1)
    with pytest.raises(AssertionError, match="calls"):
        assert_untouched(before, snapshot(model))


@pytest.mark.parametrize("name", WITH_DATA)
def test_frozen_models_and_callers_without_gradients_are_scored_all_the_same(name):
    model, (images, labels) = make("residual"), data()
    expected = scores(accumulated(name, model, [(images, labels)]), model)
    frozen = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        criterion = accumulated(name, frozen, [(images, labels)])
    torch.testing.assert_close(scores(criterion, frozen.requires_grad_(True)), expected)


@pytest.mark.parametrize("name", MERGEABLE)
def test_two_halves_merged_are_the_whole(name):
    model, (images, labels) = make("residual"), data()
    whole = accumulated(name, model, [(images, labels)])
    half, other = (accumulated(name, model, [(images[part], labels[part])]) for part in (slice(0, 2), slice(2, 6)))
    half.merge(other)
    assert half.samples == whole.samples == 6
    torch.testing.assert_close(scores(half, model), scores(whole, model), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", MERGEABLE)
def test_states_travel_through_a_file(name, tmp_path):
    model, (images, labels) = make("residual"), data()
    whole = accumulated(name, model, [(images, labels)])
    sent, received = accumulated(name, model, [(images[:2], labels[:2])]), made(name)
    save_file({key: value.contiguous() for key, value in sent.state().items()}, tmp_path / "state.safetensors")
    received.accumulate(model, [(images[2:], labels[2:])], functional.cross_entropy)
    received.load(load_file(tmp_path / "state.safetensors"))
    torch.testing.assert_close(scores(received, model), scores(whole, model), rtol=1e-10, atol=1e-14)
    one, nothing = torch.tensor(1), torch.zeros(3)
    halves = ({"0/samples": one, f"0/{key}": nothing} for key in ("other/conv", "rows/in", "total/conv"))
    for nonsense in ({}, {"weight": nothing}, {"0/rows/in/conv": nothing}, *halves):
        with pytest.raises(CriterionError, match="not the state of a"):
            received.load(nonsense)


def test_states_hold_what_repaired_gates_need(tmp_path):
    model, (images, labels) = make("residual"), data()
    whole, received = create("group-kl", repaired=True), create("group-kl", repaired=True)
    whole.accumulate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], functional.cross_entropy)
    received.load(whole.state())
    assert torch.equal(scores(received, model), scores(whole, model))


@pytest.mark.parametrize("name", MERGEABLE)
def test_how_samples_are_batched_does_not_matter(name):
    model, (images, labels) = make("residual"), data()
    whole = accumulated(name, model, [(images, labels)])
    parts = accumulated(name, model, DataLoader(TensorDataset(images, labels), batch_size=4))
    torch.testing.assert_close(scores(parts, model), scores(whole, model), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", WITH_DATA)
def test_copies_of_the_model_score_equal(name):
    model, (images, labels) = make("residual"), data()
    criterion = accumulated(name, model, [(images, labels)])
    assert torch.equal(scores(criterion, model), scores(criterion, copy.deepcopy(model)))


@pytest.mark.parametrize("name", [name for name in MERGEABLE if name not in OF_LOGITS])
def test_reduction_is_what_the_loss_does_over_a_batch(name):
    model, (images, labels) = make("residual"), data()
    mean = scores(accumulated(name, model, [(images, labels)]), model)
    for reduction in ("sum", "none"):

        def loss_fn(output, target, reduction=reduction):
            return functional.cross_entropy(output, target, reduction=reduction)

        options = {"reduction": "sum"} if reduction == "sum" else {}
        found = scores(accumulated(name, model, [(images, labels)], loss_fn, **options), model)
        torch.testing.assert_close(found, mean)
    with pytest.raises(CriterionError, match='reduction is "mean" or "sum"'):
        accumulated(name, model, [(images, labels)], reduction="none")


@pytest.mark.parametrize("name", [name for name in WITH_DATA if name not in OF_LOGITS])
def test_any_loss_of_any_target(name):
    model, (images, _) = make("residual"), data()
    wanted = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = accumulated(name, model, [(images, wanted)], lambda output, target: (output - target).square().sum(1))
    found = scores(plain, model)
    assert torch.isfinite(found).all()
    assert found.unique().numel() > 4
    double = accumulated(name, model, [(images, wanted)], lambda output, target: 2 * (output - target).square().sum(1))
    if name == "hutchinson":
        torch.testing.assert_close(scores(double, model), 2 * found)
    else:
        assert not torch.equal(scores(double, model), found) or name in ("taylor", "hessian")  # over their mean


class Dictionary(nn.Module):
    """A model that takes keywords and returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.inner = make("residual")
        self.head = self.inner.head

    def forward(self, pixels, scale=None):
        return {"logits": self.inner(pixels if scale is None else pixels * scale), "unused": pixels}


@pytest.mark.parametrize("name", WITH_DATA)
def test_inputs_and_outputs_of_any_shape(name):
    model, (images, labels) = Dictionary(), data()
    expected = renamed(accumulated(name, model.inner, [(images, labels)]).state(), "")

    def loss_fn(output, target):
        target = target["labels"] if isinstance(target, dict) else target
        return functional.cross_entropy(output["logits"], target)

    def forward(model, batch):
        return model(batch["pixels"])

    ones = torch.ones(6, 1, 1, 1, dtype=torch.float64)
    for batch, options in [
        (({"pixels": images}, labels), {}),
        (((images, ones), labels), {}),
        ([[images, ones], labels], {}),
        ({"pixels": images, "labels": labels}, {"forward": forward}),
    ]:
        if name == "group-loss" and options:
            continue  # it takes labels alone for targets
        criterion = accumulated(name, model, [batch], loss_fn, **options)
        assert criterion.samples == 6
        found = renamed(criterion.state(), "inner.")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


def renamed(state, prefix):
    return {key.replace(prefix, "", 1) if prefix else key: value for key, value in state.items()}


@pytest.mark.parametrize("name", WITH_DATA)
def test_models_that_return_a_tuple(name):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make("residual")
            self.head = self.inner.head

        def forward(self, x):
            return self.inner(x), x

    model, (images, labels) = Pair(), data()
    expected = renamed(accumulated(name, model.inner, [(images, labels)]).state(), "")
    criterion = accumulated(
        name, model, [(images, labels)], lambda output, target: functional.cross_entropy(output[0], target)
    )
    found = renamed(criterion.state(), "inner.")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("name", WITH_DATA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_near_full_precision(name, dtype):
    model, (images, labels) = make("residual", dtype=torch.float32), data(dtype=torch.float32)
    full = scores(accumulated(name, model, [(images, labels)]), model)
    half = scores(accumulated(name, model, [(images, labels)], autocast=dtype), model)
    assert half.dtype == torch.float32
    near = 0.05 if dtype == torch.float16 else 0.15  # bfloat16 has an eighth of its precision
    torch.testing.assert_close(half, full, rtol=near, atol=near * full.max().item())


@pytest.mark.parametrize("name", WITH_DATA)
def test_progress_goes_to_standard_error(name, capsys):
    model, batch = make("residual"), data()
    accumulated(name, model, [batch], progress=True)
    written = capsys.readouterr()
    assert written.out == ""
    assert "accumulating" in written.err


@pytest.mark.parametrize("name", WITH_DATA)
def test_input_that_cannot_be_used_is_refused(name):
    model, (images, labels) = make("residual"), data()
    for batches, loss_fn, message in [
        ([], functional.cross_entropy, "there is no batch"),
        (iter([]), functional.cross_entropy, "there is no batch"),
        ([()], functional.cross_entropy, "holds no tensor with samples"),
        ((images, labels), functional.cross_entropy, r"found one batch alone: give it as batches=\[batch\]"),
        (None, functional.cross_entropy, "batches is a list or loader of batches, not NoneType"),
        ([(images, labels)], None, "loss_fn must be callable"),
        ([(images * float("nan"), labels)], functional.cross_entropy, "loss of a batch of 6 samples is nan"),
        ([(images, labels)], lambda output, target: 1.0, "must return a tensor, not float"),
        ([(images, labels)], lambda output, target: output, r"not shape \[6, 5\]"),
        ([(images, labels)], lambda output, target: output.detach().sum(), "no gradient in the model"),
    ]:
        if name in ("group-kl", "group-loss") and callable(loss_fn) and not message.startswith(("there is", "batches")):
            continue  # the loss isn't called
        with pytest.raises(CriterionError, match=message):
            accumulated(name, model, batches, loss_fn)


def test_arguments_of_the_wrong_kind_are_refused():
    model, batch = make("residual"), data()
    criterion = create("group-fisher")
    for options, message in [
        ({"forward": 3}, "forward must be callable"),
        ({"autocast": "bfloat16"}, "autocast is torch.bfloat16, torch.float16 or None, not 'bfloat16'"),
    ]:
        with pytest.raises(CriterionError, match=message):
            criterion.accumulate(model, [batch], functional.cross_entropy, **options)
    with pytest.raises(CriterionError, match="model is the module that will be pruned, not str"):
        criterion.accumulate("resnet18", [batch], functional.cross_entropy)


class Learnt(nn.Module):
    """A loss with a weight of its own, which counts its calls."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output, target):
        assert self.training
        self.calls += 1
        return functional.cross_entropy(output * self.scale, target)


@pytest.mark.parametrize("name", WITH_DATA)
def test_inputs_and_a_loss_with_weights_are_left_as_they_were(name):
    model, (images, labels), loss = make("residual"), data(), Learnt()
    images.requires_grad_()
    accumulated(name, model, [(images, labels)], loss)
    assert images.grad is None and images.requires_grad
    assert loss.scale.grad is None and loss.scale.requires_grad and loss.training
    assert loss.calls == 0


def test_a_model_may_differentiate_in_its_inputs():
    model, (images, labels) = make("residual"), data()
    images.requires_grad_()

    def forward(model, batch):
        output = model(batch[0])
        (slope,) = torch.autograd.grad(output.sum(), batch[0], create_graph=True)
        return output + slope.mean()

    criterion = create("group-fisher")
    criterion.accumulate(
        model, [(images, labels)], lambda output, batch: functional.cross_entropy(output, batch[1]), forward=forward
    )
    assert criterion.samples == len(images)


class Named(NamedTuple):
    """A batch whose parts have names."""

    images: torch.Tensor
    labels: torch.Tensor


class Shown(Named):
    """A named tuple that is made in another way."""

    def __new__(cls, batch):
        return super().__new__(cls, *batch)


@pytest.mark.parametrize("name", ["group-fisher", "empirical-fisher"])
@pytest.mark.parametrize("kind", [lambda *batch: Named(*batch), lambda *batch: Shown(batch)])
def test_batches_may_be_named_tuples(name, kind):
    model, (images, labels) = make("residual"), data()
    found = accumulated(
        name,
        model,
        [kind(images, labels)],
        lambda output, batch: functional.cross_entropy(output, batch.labels),
        forward=lambda model, batch: model(batch.images),
    )
    assert torch.equal(scores(found, model), scores(accumulated(name, model, [(images, labels)]), model))


def test_a_data_set_may_hold_batches():
    model, (images, labels) = make("residual"), data()
    found = accumulated(
        "group-fisher", model, TensorDataset(images.unflatten(0, (2, -1)), labels.unflatten(0, (2, -1)))
    )
    assert found.samples == len(images)


@pytest.mark.parametrize("name", WITH_DATA)
def test_what_has_no_gradient_is_refused(name):
    model, batch = make("residual"), data()
    criterion = create(name)
    with pytest.raises(CriterionError, match=r"no gradient.*detached"):
        criterion.accumulate(
            model,
            [batch],
            lambda output, batch: functional.cross_entropy(output, batch[1]),
            forward=lambda model, batch: model(batch[0]).detach(),
        )
    with torch.inference_mode(), pytest.raises(CriterionError, match=r"no gradient.*inference_mode"):
        criterion.accumulate(model, [batch], functional.cross_entropy)
    assert criterion.samples == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", WITH_DATA)
def test_scores_on_a_gpu_are_those_on_the_processor(name):
    model, (images, labels) = make("residual"), data()
    expected = scores(accumulated(name, model, [(images, labels)]), model)
    moved = copy.deepcopy(model).cuda()
    criterion = accumulated(name, moved, [(images, labels)])
    found = torch.cat([criterion(group).cpu() for group in groups(moved).values()])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", WITH_DATA)
def test_another_model_or_nothing_accumulated_is_refused(name):
    model, (images, labels) = make("residual"), data()
    criterion = made(name)
    group = next(iter(groups(model).values()))
    with pytest.raises(CriterionError, match="nothing has been accumulated|has no gradient"):
        criterion(group)
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    criterion(group)
    with pytest.raises(CriterionError, match=r"same model|another model|call reset\(\)"):
        criterion(next(iter(groups(make("attention")).values())))
    pruned = copy.deepcopy(model)
    for cut in groups(pruned).values():
        cut.prune([0])
    with pytest.raises(CriterionError, match=r"call reset\(\)"):
        criterion(next(iter(groups(pruned).values())))
    with pytest.raises(CriterionError, match=r"call reset\(\)"):
        criterion.accumulate(pruned, [(images, labels)], functional.cross_entropy)
    with pytest.raises(CriterionError, match="has accumulated nothing"):
        criterion.merge(made(name))
    with pytest.raises(CriterionError, match="can't merge"):
        criterion.merge(create("taylor" if name != "taylor" else "hessian"))


@pytest.mark.parametrize("name", [name for name in WITH_DATA if name not in OF_LOGITS])
def test_non_finite_gradients_are_refused(name):
    model, (images, labels) = make("residual"), data()

    def loss_fn(output, target):
        return output.sum() * 0 + (output - output.detach()).abs().sqrt().sum()

    with pytest.raises(CriterionError, match="not finite"):
        accumulated(name, model, [(images, labels)], loss_fn)


@pytest.mark.parametrize("name", WITH_DATA)
def test_weights_that_are_not_finite_are_refused(name):
    model, (images, labels) = make("residual"), data()
    before = made(name)
    with torch.no_grad():
        model.b.weight[0] = float("nan")
    with pytest.raises(CriterionError, match="not finite|is nan"):
        before.accumulate(model, [(images, labels)], functional.cross_entropy)
    assert before.samples == 0


@pytest.mark.parametrize("name", WITH_DATA)
def test_frozen_layers_are_scored_with_the_others(name):
    model, (images, labels) = make("residual"), data()
    expected = scores(accumulated(name, model, [(images, labels)]), model)
    for layer in (model.stem, model.norm, model.a):
        layer.requires_grad_(False)
    criterion = accumulated(name, model, [(images, labels)])
    assert [p.requires_grad for p in model.parameters()].count(False) == 7
    torch.testing.assert_close(scores(criterion, model.requires_grad_(True)), expected)


@pytest.mark.parametrize("name", WITH_DATA)
def test_merging_leaves_the_other_as_it_was_and_equals_loading_its_state(name):
    model, (images, labels) = make("residual"), data()
    one, other = (accumulated(name, model, [(images[part], labels[part])]) for part in (slice(0, 2), slice(2, 6)))
    loaded, before = made(name), scores(other, model)
    loaded.load(one.state())
    loaded.load(other.state())
    one.merge(other)
    assert (one.samples, other.samples, loaded.samples) == (6, 4, 6)
    assert torch.equal(scores(other, model), before)
    assert torch.equal(scores(loaded, model), scores(one, model))


def test_a_model_that_hides_its_samples_is_refused():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            return self.head(x.mean((0, 2, 3))[None]).expand(len(x), -1)

    with pytest.raises(CriterionError, match="no gradient reached a convolution, linear or norm layer"):
        accumulated("group-fisher", Merged().double(), [data()])


@pytest.mark.parametrize("name", WITH_DATA)
def test_wrappers_do_not_change_names(name):
    model, (images, labels) = make("residual"), data()
    wrapped = nn.DataParallel(model)
    assert torch.equal(
        scores(accumulated(name, wrapped, [(images, labels)]), model),
        scores(accumulated(name, model, [(images, labels)]), model),
    )
