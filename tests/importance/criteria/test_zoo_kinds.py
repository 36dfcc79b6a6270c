"""Layers as the zoo's models use them: shared inputs, weights without calls, data-dependent rows, lists of samples."""

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

import hfp
from hfp.importance import CriterionError, create, describe, names
from hfp.layers import table
from hfp.reconstruct import Coupling

FROM_DATA = [name for name in names() if describe(name).needs == "data"]
PER_SAMPLE = ["empirical-fisher", "hessian"]


class Network(nn.Module):
    """A feed-forward block of 4 tokens, between something that a test chooses and a head."""

    def __init__(self):
        super().__init__()
        self.enter, self.up, self.down, self.head = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.mixed(self.enter(x))
        x = x + self.down(self.up(x).relu())
        return self.head(x.mean(1))

    def mixed(self, x):
        return x


class Places(Network):
    """Positions are looked up for all samples at once: as many rows as tokens, and no samples."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(4, 6)

    def mixed(self, x):
        return x + self.places(torch.arange(4))


class Projected(Network):
    """What all samples share goes through a layer."""

    def __init__(self):
        super().__init__()
        self.shared, self.places = nn.Linear(6, 6), nn.Parameter(torch.randn(1, 4, 6))

    def mixed(self, x):
        return x + self.shared(F.gelu(self.places))


class TimeFirst(Network):
    """Tokens come before samples."""

    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.back = nn.LayerNorm(6), nn.Linear(6, 7), nn.Linear(7, 6)

    def mixed(self, x):
        return self.back(self.wide(self.norm(x.transpose(0, 1))).tanh()).transpose(0, 1)


class Uncalled(Network):
    """A layer's weight is used without calling the layer, and another layer is not used at all."""

    def __init__(self):
        super().__init__()
        self.wide, self.back, self.training_only = nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(7, 4)

    def mixed(self, x):
        return x + self.wide(x).tanh() @ self.back.weight.T


class Routed(Network):
    """How many rows an expert is given depends on the data."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 6)) for _ in range(2))

    def mixed(self, x):
        found = x.flatten(0, 1)
        y, first = torch.zeros_like(found), found[:, 0] > 0
        y[first], y[~first] = self.experts[0](found[first]), self.experts[1](found[~first])
        return x + y.view_as(x)


class _Doubled(Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Custom(Network):
    """A function that torch.func can't take, beside a parameter without a layer."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 4, 6))

    def mixed(self, x):
        return _Doubled.apply(x + self.place)


class Remembering(Network):
    """A recurrent layer, which returns no tensor."""

    def __init__(self):
        super().__init__()
        self.memory = nn.GRU(6, 6, batch_first=True)

    def mixed(self, x):
        return self.memory(x)[0]


class Keywords(Network):
    """Layers are called with keywords."""

    def __init__(self):
        super().__init__()
        self.wide, self.back = nn.Linear(6, 7), nn.Linear(7, 6)

    def mixed(self, x):
        return x + self.back(input=self.wide(input=x).tanh())


class Router(nn.Linear):
    """A linear layer that returns a tuple."""

    def forward(self, x):
        return super().forward(x).softmax(-1), x.shape


class Chosen(Network):
    def __init__(self):
        super().__init__()
        self.router = Router(6, 6)

    def mixed(self, x):
        return x * self.router(x)[0]


KINDS = [Chosen, Keywords, Places, Projected, TimeFirst, Uncalled, Routed, Custom, Remembering]


def problem(kind):
    torch.manual_seed(3)
    model = kind().double().eval()
    return model, torch.randn(4, 4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 1])


def accumulated(name, model, x, y, **options):
    criterion = create(name, **options)
    criterion.accumulate(model, [(x, y)], F.cross_entropy)
    return criterion


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PER_SAMPLE)
def test_squares_of_gradients_are_those_of_one_backward_pass_per_sample(kind, name):
    model, x, y = problem(kind)
    found = accumulated(name, model, x, y)
    expected = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    for n in range(4):
        loss = F.cross_entropy(model(x[n : n + 1]), y[n : n + 1])
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True, allow_unused=True)
        for key, gradient in zip(expected, gradients, strict=True):
            expected[key] += gradient.square() / 4
    for key, value in expected.items():
        torch.testing.assert_close(found.statistics(key)[1], value, rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Remembering])
def test_gate_gradients_are_those_of_samples_alone(kind):
    model, x, y = problem(kind)
    together, groups = accumulated("group-fisher", model, x, y), Coupling.trace(model, x).groups_of(model)
    alone = [accumulated("group-fisher", model, x[n : n + 1], y[n : n + 1]) for n in range(4)]
    for name in Coupling.trace(model, x).names:
        found, expected = together(groups(name)), sum(each(groups(name)) for each in alone) / 4
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-16)


def test_a_weight_that_is_used_without_its_layer_is_read_as_by_the_layer():
    class Called(Uncalled):
        def mixed(self, x):
            return (
                x + F.linear(self.wide(x).tanh(), self.back.weight) if self.bare else x + self.back(self.wide(x).tanh())
            )

    model, x, y = problem(Called)
    torch.nn.init.zeros_(model.back.bias)
    model.bare = True
    group = Coupling.trace(model, x).groups_of(model)("wide")
    found = accumulated("group-fisher", model, x, y)(group)
    model.bare = False
    torch.testing.assert_close(found, accumulated("group-fisher", model, x, y)(group), rtol=1e-9, atol=1e-16)
    assert found.min() > 0


@pytest.mark.parametrize("name", FROM_DATA)
def test_a_layer_that_nothing_uses_scores_zero(name):
    class Idle(Network):
        def __init__(self):
            super().__init__()
            self.extra, self.more = nn.Linear(6, 7), nn.Linear(7, 6)

        def mixed(self, x):
            return x + self.more(self.extra(x).relu()) if self.extra_too else x

    model, x, y = problem(Idle)
    model.extra_too = True
    groups = Coupling.trace(model, x).groups_of(model)
    model.extra_too = False
    criterion = accumulated(name, model, x, y)
    assert criterion(groups("extra")).abs().max() == 0
    assert criterion(groups("up")).abs().max() > 0


def test_kronecker_refuses_a_weight_that_is_used_without_its_layer():
    model, x, y = problem(Uncalled)
    criterion = accumulated("kronecker", model, x, y)
    with pytest.raises(CriterionError, match="'back' never ran by itself.*its weight is used: take group-fisher"):
        criterion(Coupling.trace(model, x).groups_of(model)("wide"))


def test_a_list_of_images_has_one_sample_per_image():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

        def forward(self, images):
            return self.head(self.body(torch.stack(list(images))).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, images, y = Detector().eval(), torch.randn(2, 3, 6, 6), torch.tensor([0, 1])
    group = Coupling.trace(model, (list(images),)).groups_of(model)("body")
    for name in FROM_DATA:
        criterion = create(name)
        criterion.accumulate(model, [((list(images),), y)], F.cross_entropy)
        assert criterion.samples == 2
        assert criterion(group).abs().max() > 0


def test_group_loss_takes_its_targets_from_the_batch_that_a_forward_is_given():
    model, x, y = problem(Network)
    group = Coupling.trace(model, x).groups_of(model)("up")
    criterion = create("group-loss")
    criterion.accumulate(
        model,
        [(x, y)],
        lambda output, batch: F.cross_entropy(output, batch[1]),
        forward=lambda model, batch: model(batch[0]),
    )
    torch.testing.assert_close(criterion(group), accumulated("group-loss", model, x, y)(group))


def test_layers_of_packages_that_are_not_there_are_known_by_name():
    kind = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    assert table.reads_along(kind()) == -1
    assert [slot.dim for slot in table.slots_of(kind(), "out")] == [1, 0]


def test_unused_rows_of_an_embedding_are_a_group_with_weights_to_score():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = nn.Embedding(6, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x + self.rows.weight[:3].mean(0))

    model, x = Sliced(), torch.randn(2, 4)
    coupling = Coupling.trace(model, x)
    for name in coupling.names:
        assert len(list(coupling.groups_of(model)(name))) > 0


def test_a_model_that_keeps_what_it_computed_is_pruned_after_scoring():
    class Keeping(Network):
        def mixed(self, x):
            self.pyramid = [x, (x.tanh(),)]
            return x

    model, x, y = problem(Keeping)
    criterion = accumulated("group-fisher", model, x, y)
    assert hfp.prune(model, x, hfp.Budget(macs=0.5), importance=criterion).report.ratio > 0.3


class Tables(Network):
    """Parameters beside layers: added, scaled with, looked up, read by a layer, and one that reads the channels."""

    def __init__(self):
        super().__init__()
        self.added, self.scale = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.rand(4, 6))
        self.queries, self.reading = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(7, 6))
        self.other, self.back = nn.Linear(6, 6), nn.Linear(7, 6)

    def mixed(self, x):
        x = x * self.scale.exp() + self.added[torch.tensor([1, 0, 3, 2])]
        x = x + self.other(self.queries) + self.queries
        return x + self.back((x @ self.reading.T).tanh())


@pytest.mark.parametrize("name", ["group-fisher", "kronecker"])
def test_what_a_parameter_is_multiplied_with_says_whether_it_reads_channels(name):
    model, x, y = problem(Tables)
    criterion = accumulated(name, model, x, y)
    found = {key.rpartition("/")[2] for key in criterion.state() if "passes/" in key}
    assert found == {"added", "scale", "queries"}
    groups = Coupling.trace(model, x).groups_of(model)
    with pytest.raises(CriterionError, match="'reading' .* whether dimension 1 reads channels"):
        criterion(groups("enter"))


class Biased(Network):
    """A table of biases for pairs of tokens and heads, as in Swin, beside a scale for each channel and state."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 6))

    def mixed(self, x):
        bias = self.table[torch.arange(16).view(4, 4)]
        return x + (x[:, None] * bias.softmax(0)).sum(2)


@pytest.mark.parametrize("name", FROM_DATA)
def test_channels_of_a_table_that_is_looked_up_and_added_are_scored(name, tmp_path):
    model, x, y = problem(Biased)
    group = Coupling.trace(model, x).groups_of(model)("enter")
    criterion = accumulated(name, model, x, y)
    assert torch.isfinite(criterion(group)).all() and criterion(group).abs().max() > 0
    again = create(name)
    again.load(criterion.state())
    assert torch.equal(again(group), criterion(group))


@torch.library.custom_op("hfp_tests::mixed", mutates_args=())
def mixed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


mixed.register_autograd(
    lambda ctx, grad: (grad @ ctx.saved_tensors[1].T, ctx.saved_tensors[0].flatten(0, 1).T @ grad.flatten(0, 1)),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class Kernel(Network):
    """An operation of a package's own multiplies a parameter with the channels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def mixed(self, x):
        return mixed(x, self.weight)


class Recurrent(Remembering):
    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(6, 6, batch_first=True)


@pytest.mark.parametrize("kind", [Kernel, Recurrent])
def test_a_parameter_whose_operation_may_multiply_does_not_pass_channels_on(kind):
    model, x, y = problem(kind)
    assert not [key for key in accumulated("group-fisher", model, x, y).state() if "passes/" in key]
    assert not [key for key in accumulated("group-fisher", model.float(), x.float(), y).state() if "passes/" in key]
