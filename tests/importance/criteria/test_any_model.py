"""Criteria score models whose weights are shared, computed, wrapped or idle, or name the layer and the way out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from hfp.importance import CriterionError, create, describe, names
from hfp.reconstruct import Coupling

FROM_DATA = [name for name in names() if describe(name).needs == "data"]


def scored(criterion, model, x, y):
    coupling = Coupling.trace(model, x)
    groups = coupling.groups_of(model)
    if hasattr(criterion, "accumulate"):
        criterion.accumulate(model, [(x, y)], F.cross_entropy)
    return {name: criterion(groups(name)) for name in coupling.names}


def assert_useful(scores):
    for name, values in scores.items():
        assert torch.isfinite(values).all(), name
        assert values.abs().max() > 0, name


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(x + self.down(self.up(x).relu())).mean(1)


@pytest.mark.parametrize("name", [*FROM_DATA, "l2"])
def test_tied_weights_are_scored(name):
    torch.manual_seed(0)
    model, tokens = Language(), torch.randint(20, (6, 4))
    assert_useful(scored(create(name), model, tokens, torch.randint(20, (6,))))


def test_a_tied_weight_counts_once():
    torch.manual_seed(0)
    model, tokens, y = Language().double(), torch.randint(20, (6, 4)), torch.randint(20, (6,))
    found = next(values for values in scored(create("empirical-fisher"), model, tokens, y).values() if len(values) == 8)
    expected = torch.zeros(8, dtype=torch.float64)
    for n in range(6):
        loss = F.cross_entropy(model(tokens[n : n + 1]), y[n : n + 1])
        weights = dict(model.named_parameters())
        each = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        for key, dim in (("embed.weight", 1), ("up.weight", 1), ("down.weight", 0), ("down.bias", 0)):
            squares = (each[key] * weights[key].detach()).square()
            expected += squares.movedim(dim, 0).reshape(8, -1).sum(1) / 6
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def plain():
    torch.manual_seed(0)
    body = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(6, 3))


IMAGES, LABELS = torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def weight_norm(layer):
    return parametrizations.weight_norm(layer)


def spectral_norm(layer):
    return parametrizations.spectral_norm(layer)


def masked(layer):
    return prune.random_unstructured(layer, "weight", 0.3)


@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm, masked, nn.utils.weight_norm])
@pytest.mark.parametrize("name", [*FROM_DATA, "l2"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_are_computed_score_as_the_same_weights_stored(wrap, name):
    model = plain()
    wrap(model[0])
    wrap(model[2])
    model.eval()
    if name == "hutchinson":
        with pytest.raises(
            CriterionError, match=r"layer '0' computes its weight.*take group-fisher, or make the weight"
        ):
            scored(create(name), model, IMAGES, LABELS)
        return
    if name == "l2":
        assert_useful(scored(create(name), model, IMAGES, LABELS))
        return
    if name in ("taylor", "hessian"):  # torch-pruning's own: scores, or a line that names the group
        try:
            scored(create(name), model, IMAGES, LABELS)
        except CriterionError as error:
            assert "nothing to score in the group of" in str(error) or "computes its weight" in str(error)
        return
    same = plain()
    with torch.no_grad():
        for place in (0, 2):
            same[place].weight.copy_(model[place].weight)
            same[place].bias.copy_(model[place].bias)
    same.eval()
    found, expected = scored(create(name), model, IMAGES, LABELS), scored(create(name), same, IMAGES, LABELS)
    assert len(found) == len(expected) == 2
    for values, wanted in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(values / values.sum(), wanted / wanted.sum(), rtol=1e-3, atol=1e-6)


class Residual(nn.Module):
    """Blocks of one width that add to what they read, so that all their layers are of one group."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Linear(6, 6) for _ in range(6)]
        self.stem, self.blocks, self.head = nn.Linear(6, 6), nn.ModuleList(layers), nn.Linear(6, 3)
        for layer in layers:
            wrap(layer)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


@pytest.mark.parametrize("name", ["empirical-fisher", "kronecker", "group-fisher", "group-loss"])
def test_many_computed_weights_of_one_group_score_as_the_same_weights_stored(name):
    computed, stored = Residual(weight_norm).eval(), Residual(lambda layer: None).eval()
    x, y = torch.randn(12, 6), torch.randint(3, (12,))
    with torch.no_grad():
        for block, same in zip(computed.blocks, stored.blocks, strict=True):
            same.weight.copy_(block.weight)
    found, expected = (scored(create(name), model, x, y) for model in (computed, stored))
    assert len(found) == len(expected)
    for values, wanted in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(values, wanted)


@pytest.mark.parametrize("name", [*FROM_DATA, "l2"])
def test_data_parallel_models_score_as_the_model_inside(name):
    inner = plain().eval()
    expected = scored(create(name), inner, IMAGES, LABELS)
    found = scored(create(name), nn.DataParallel(inner), IMAGES, LABELS)
    for key, values in expected.items():
        torch.testing.assert_close(found[f"module.{key}"], values)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8)) for _ in range(2))

    def forward(self, x):
        x = self.inner(x).relu()
        first = x.sum(1) > -1  # every row: the second expert is given none
        y = torch.zeros_like(x)
        y[first], y[~first] = self.experts[0](x[first]), self.experts[1](x[~first])
        return self.outer(x + y)


@pytest.mark.parametrize("name", ["kronecker", "group-fisher"])
@pytest.mark.parametrize("repaired", [False, True])
def test_an_expert_that_was_given_no_rows_scores_zero(name, repaired):
    torch.manual_seed(0)
    scores = scored(create(name, repaired=repaired), Experts(), torch.randn(8, 6), torch.randint(3, (8,)))
    assert all(torch.isfinite(values).all() for values in scores.values())
    assert scores["experts.1.0"].abs().max() < 1e-9
    assert scores["inner"].abs().max() > 0 and scores["experts.0.0"].abs().max() > 0


class Routed(Experts):
    def forward(self, x):
        x = self.inner(x).relu()
        first = x.sum(1) > x.sum(1).new_tensor(2.0)
        y = torch.zeros_like(x)
        for chosen, expert in zip((first, ~first), self.experts, strict=True):
            if chosen.any():
                y[chosen] = expert(x[chosen])
        return self.outer(x + y)


@pytest.mark.parametrize("repaired", [False, True])
def test_an_expert_that_runs_in_some_batches_scores_the_same_whatever_their_size(repaired):
    torch.manual_seed(0)
    model, x, y = Routed(), torch.randn(12, 6), torch.randint(3, (12,))
    groups = Coupling.trace(model, x).groups_of(model)
    found = []
    for size in (1, 12):
        criterion = create("group-fisher", repaired=repaired)
        criterion.accumulate(model, list(zip(x.split(size), y.split(size), strict=True)), F.cross_entropy)
        found.append(torch.cat([criterion(groups(name)) for name in ("inner", "experts.0.0", "experts.1.0")]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["empirical-fisher", "hutchinson", "taylor", "hessian"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_small_gradients_in_half_precision_add_up_as_in_double(name, dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    torch.manual_seed(0)
    x, factor = torch.randn(1, 3), 1e-4
    batches = [(x, torch.zeros(1, dtype=torch.long))] * 600
    found = []
    for own in (torch.float64, dtype):
        criterion, copied = create(name), copy.deepcopy(model).to(own)
        moved = [(x.to(own), y) for x, y in batches]
        criterion.accumulate(copied, moved, lambda z, y: factor * F.cross_entropy(z, y))
        found.append(criterion._moments)
    for part in ("gradient", "curvature"):
        for key, expected in getattr(found[0], part).items():
            mine = getattr(found[1], part)[key]
            torch.testing.assert_close(mine.double(), expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


@pytest.mark.parametrize("name", FROM_DATA)
def test_data_of_inference_mode_score_as_any_data_and_its_models_are_refused_in_one_line(name):
    model = plain().eval()
    with torch.inference_mode():
        images, labels, made = IMAGES + 0, LABELS + 0, copy.deepcopy(model)
    expected = scored(create(name), model, IMAGES, LABELS)
    criterion = create(name)
    criterion.accumulate(model, [(images, labels)], F.cross_entropy)
    groups = Coupling.trace(model, IMAGES).groups_of(model)
    for key, values in expected.items():
        torch.testing.assert_close(criterion(groups(key)), values)
    with pytest.raises(CriterionError, match="made in inference_mode"):
        criterion.accumulate(made, [(IMAGES, LABELS)], F.cross_entropy)
    criterion.accumulate(copy.deepcopy(made), [(IMAGES, LABELS)], F.cross_entropy)


@pytest.mark.parametrize("name", FROM_DATA)
def test_models_in_bfloat16_give_finite_scores(name):
    model = plain().bfloat16().eval()
    assert_useful(scored(create(name), model, IMAGES.bfloat16(), LABELS))


class Chosen(nn.Module):
    """Takes some of its inputs, by numbers that are a parameter or a buffer of the model or of a layer."""

    def __init__(self, as_parameter, in_layer):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        chosen, holder = torch.tensor([0, 2, 1, 5]), self.first if in_layer else self
        if as_parameter:
            holder.register_parameter("chosen", nn.Parameter(chosen, requires_grad=False))
        else:
            holder.register_buffer("chosen", chosen)

    def forward(self, x):
        chosen = self.chosen if hasattr(self, "chosen") else self.first.chosen
        return self.last(self.first(x[:, chosen]).tanh())


@pytest.mark.parametrize("in_layer", [False, True])
@pytest.mark.parametrize("name", FROM_DATA)
def test_parameters_that_are_whole_numbers_have_no_gradient(name, in_layer):
    torch.manual_seed(1)
    x, y = torch.randn(16, 6), torch.randint(3, (16,))
    found = [scored(create(name), Chosen(as_parameter, in_layer), x, y)["first"] for as_parameter in (True, False)]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["l1", "empirical-fisher", "group-fisher", "kronecker"])
def test_scoring_in_training_mode_leaves_the_vectors_of_spectral_norm_alone(name):
    torch.manual_seed(0)
    wrap = parametrizations.spectral_norm
    model, x = nn.Sequential(wrap(nn.Linear(4, 6)), nn.ReLU(), wrap(nn.Linear(6, 3))).train(), torch.randn(8, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scored(create(name), model, x, torch.randint(3, (8,)))
    assert all(module.training for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


class WithoutOutputs(nn.Module):
    """Has a layer that was left without outputs."""

    def __init__(self):
        super().__init__()
        self.none, self.up, self.down = nn.Linear(4, 1), nn.Linear(4, 6), nn.Linear(6, 3)
        self.none.weight, self.none.bias = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.zeros(0))

    def forward(self, x):
        return self.down(self.up(x).relu()) + self.none(x).sum()


@pytest.mark.parametrize("name", FROM_DATA)
def test_layers_without_outputs_are_in_nobodys_way(name):
    torch.manual_seed(0)
    model, x = WithoutOutputs(), torch.randn(8, 4)
    assert_useful(scored(create(name), model, x, torch.randint(3, (8,))))


class Scaled(nn.Module):
    """Multiplies by a parameter that is no layer's."""

    def __init__(self):
        super().__init__()
        self.up, self.scale, self.down = nn.Linear(4, 6), nn.Parameter(torch.rand(6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.down((self.up(x) * self.scale).relu())


@pytest.mark.parametrize("name", ["empirical-fisher", "hutchinson"])
def test_small_gradients_survive_mixed_precision_in_float16(name):
    torch.manual_seed(0)
    model, x, y = Scaled(), torch.randn(8, 4) * 1e-3, torch.randint(3, (8,))
    found = {}
    for kind in (None, torch.float16):
        criterion = create(name)
        criterion.accumulate(model, [(x, y)], lambda output, y: F.cross_entropy(output, y) * 1e-7, autocast=kind)
        found[kind] = criterion.statistics("scale")
    for half, full in zip(found[torch.float16], found[None], strict=True):
        torch.testing.assert_close(half, full, rtol=0.05, atol=0.05 * full.abs().max().item())


@pytest.mark.parametrize("name", ["taylor", "hutchinson"])
def test_gradients_of_large_batches_stay_finite_in_float16(name):
    torch.manual_seed(0)
    model, x, y = Scaled(), torch.randn(256, 4), torch.zeros(256, dtype=torch.long)
    criterion = create(name)
    criterion.accumulate(model, [(x, y)], F.cross_entropy, autocast=torch.float16)
    assert criterion.samples == 256
