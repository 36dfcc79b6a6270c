"""Kronecker against its definition: a loop over samples and positions, float64, and the loss of taking columns out."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from networks.criteria import data, group_of, groups, make
from torch import nn
from torch.nn import functional

from hfp.importance import CriterionError, KroneckerImportance, Slot, create, register_layer
from hfp.importance.bases.joint import quadratic_joint_scores
from hfp.importance.capture.factors import as_matrix, gram, patches
from hfp.importance.groups.members import members

READ = [
    *(("residual", "stem"), ("residual", "a.0"), ("flat", "conv"), ("flat", "hidden"), ("normed", "first")),
    *(("depthwise", "point"), ("depthwise", "depthwise"), ("attention", "down"), ("attention", "up")),
    *(("in-place", "first"), ("in-place", "second")),
]


def accumulated(model, batches, loss_fn=functional.cross_entropy, **options):
    criterion = KroneckerImportance(**options)
    criterion.accumulate(model, batches, loss_fn)
    return criterion


def quantity(logits, label, fisher, bits):
    """What is differentiated, of one sample."""
    if fisher == "empirical":
        return functional.cross_entropy(logits[None], label[None])
    p = logits.detach().softmax(0)
    mean = sum(p[j] * logits[j] for j in range(len(p)))
    return sum((1 if bits[k] else -1) * p[k].sqrt() * (logits[k] - mean) for k in range(len(p)))


def patches_of(layer, x):
    """What the kernel lies on at every position, for one sample: `[channels, kernel]` each."""
    if isinstance(layer, nn.Linear):
        return [row[:, None] for row in x.reshape(-1, x.shape[-1])]
    (height, width), (down, across), (pad, _) = layer.kernel_size, layer.stride, layer.padding
    padded = functional.pad(x[0], [pad] * 4)
    return [
        padded[:, top : top + height, left : left + width].flatten(1)
        for top in range(0, padded.shape[1] - height + 1, down)
        for left in range(0, padded.shape[2] - width + 1, across)
    ]


def observed(model, layer, fisher, images, labels):
    """(what enters, what leaves, gradients of what leaves) a layer: for each sample a list over positions."""
    bits = np.random.default_rng(0).integers(0, 2, (len(images), 5))
    entering, leaving, gradients = [], [], []
    for image, label, mine in zip(images, labels, bits, strict=True):
        kept = {}

        def keep(module, args, output, kept=kept):
            kept["x"], kept["y"] = args[0].detach().clone(), output
            return output.clone()

        handle = layer.register_forward_hook(keep)
        value = quantity(model(image[None])[0], label, fisher, mine)
        handle.remove()
        for written, found in ((kept["y"].detach(), leaving), (torch.autograd.grad(value, kept["y"])[0], gradients)):
            found.append(list(written.flatten(0, -2) if isinstance(layer, nn.Linear) else written[0].flatten(1).T))
        entering.append(patches_of(layer, kept["x"]))
    return entering, leaving, gradients


def second_moment(samples, repaired):
    """The mean of products over samples and positions, of what each entry adds to its mean if repaired."""
    rows = [row.flatten() for sample in samples for row in sample]
    mean = sum(rows) / len(rows) if repaired else torch.zeros_like(rows[0])
    return sum(torch.outer(row - mean, row - mean) for row in rows) / len(rows)


def gradient_moment(samples):
    """The sum of products over positions, the mean over samples."""
    return sum(torch.outer(g, g) for sample in samples for g in sample) / len(samples)


def reading_cost(model, member, fisher, repaired, images, labels):
    """A function of the channels that go: 1/2 tr(G W_S A W_S^T), where `W_S` has their columns and 0 elsewhere."""
    layer = member.layer
    entering, _, gradients = observed(model, layer, fisher, images, labels)
    count = getattr(layer, "groups", 1)
    wide, out = len(entering[0][0]) // count, len(gradients[0][0]) // count
    parts = []
    for place in range(count):
        reads, writes = slice(place * wide, (place + 1) * wide), slice(place * out, (place + 1) * out)
        a = second_moment([[row[reads] for row in sample] for sample in entering], repaired)
        g = gradient_moment([[row[writes] for row in sample] for sample in gradients])
        parts.append((a, g, layer.weight.detach()[writes], reads.start))

    def cost(gone):
        own = [int(i) for i, place in zip(member.indices, member.positions, strict=True) if int(place) in gone]
        total = 0.0
        for a, g, weight, start in parts:
            taken = torch.zeros_like(weight)
            for channel in own:
                if 0 <= channel - start < weight.shape[1]:
                    taken[:, channel - start] = weight[:, channel - start]
            total += torch.trace(g @ taken.flatten(1) @ a @ taken.flatten(1).T) / 2
        return total

    return cost


def writing_cost(model, member, fisher, repaired, images, labels):
    """The same where a linear layer writes them: 1/2 of the sum of E yy^T and G, multiplied entry by entry."""
    _, leaving, gradients = observed(model, member.layer, fisher, images, labels)
    products = second_moment(leaving, repaired) * gradient_moment(gradients)

    def cost(gone):
        own = [int(i) for i, place in zip(member.indices, member.positions, strict=True) if int(place) in gone]
        return products[own][:, own].sum() / 2

    return cost


def assert_costs(group, criterion, cost):
    """Every channel alone, every pair and all together: so that each entry of the matrix is looked at."""
    matrix = criterion.matrix(group)
    channels = range(len(group[0].idxs))
    for gone in [*combinations(channels, 1), *combinations(channels, 2), tuple(channels)]:
        found = matrix[list(gone)][:, list(gone)].sum() / 2
        torch.testing.assert_close(found, torch.as_tensor(cost(set(gone)), dtype=found.dtype), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("fisher", "repaired"), [("gauss-newton", True), ("empirical", False)])
@pytest.mark.parametrize(("network", "layer"), READ)
def test_costs_equal_the_definition(network, layer, fisher, repaired):
    model, (images, labels) = make(network), data(3)
    group = group_of(model, layer)
    batches = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    criterion = accumulated(model, batches, fisher=fisher, repaired=repaired)
    costs = [
        reading_cost(model, member, fisher, repaired, images, labels)
        for member in members(group)
        if member.direction == "in"
    ]
    assert costs
    assert_costs(group, criterion, lambda gone: sum(cost(gone) for cost in costs))


@pytest.mark.parametrize("repaired", [True, False])
def test_attention_costs_are_the_mean_of_both_sides_of_its_products(repaired):
    model, (images, labels) = make("attention"), data(3)
    group = groups(model)["proj"]
    criterion = accumulated(model, [(images, labels)], fisher="empirical", repaired=repaired)
    costs = [
        (reading_cost if member.direction == "in" else writing_cost)(
            model, member, "empirical", repaired, images, labels
        )
        for member in members(group)
        if isinstance(member.layer, nn.Linear)
    ]
    assert len(costs) > 1
    assert_costs(group, criterion, lambda gone: sum(cost(gone) for cost in costs) / 2)


def test_comparison_helper_sees_a_wrong_matrix():
    model, batch = make("residual"), data(3)
    criterion, group = accumulated(model, [batch]), group_of(model, "a.0")
    with pytest.raises(AssertionError, match="not close"):
        assert_costs(group, criterion, lambda gone: criterion.matrix(group)[0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_scores_rise_along_the_greedy_order(seed):
    draw = torch.Generator().manual_seed(seed)
    factor = torch.randn(6, 4, dtype=torch.float64, generator=draw)
    matrix = factor @ factor.T
    scores = quadratic_joint_scores(matrix)
    gone: list[int] = []
    highest = 0.0
    for channel in scores.argsort().tolist():
        left = [c for c in range(6) if c not in gone]
        adds = {c: float(matrix[c, c] / 2 + matrix[c, gone].sum()) for c in left}
        assert adds[channel] == pytest.approx(min(adds.values()), abs=1e-12)
        highest = max(highest, adds[channel])
        assert float(scores[channel]) == pytest.approx(highest, rel=1e-5, abs=1e-5 * float(scores.max()))
        gone.append(channel)


def test_twins_are_cheap_one_at_a_time_and_dear_together():
    matrix = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.5]], dtype=torch.float64)
    for order in permutations(range(3)):
        scores = quadratic_joint_scores(matrix[list(order)][:, list(order)])
        twins = sorted(float(scores[place]) for place, channel in enumerate(order) if channel < 2)
        assert twins[0] < float(scores[order.index(2)]) < twins[1]
    alone = accumulated(make("residual"), [data()], joint=False)
    group = group_of(make("residual"), "a.0")
    torch.testing.assert_close(alone(group), alone.matrix(group).diagonal() / 2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 4), (3, 7, 5)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (2, 4, 9, 7)),
        (nn.Conv2d(4, 6, (3, 1), stride=(1, 2), padding=(1, 0), padding_mode="reflect"), (2, 4, 9, 7)),
        (nn.Conv2d(6, 6, 1, groups=3), (2, 6, 4, 4)),
        (nn.Conv3d(2, 4, (1, 2, 3), padding=1), (2, 2, 4, 5, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_weights_times_patches_are_the_output(layer, shape):
    layer, x = layer.double(), torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dim = -1 if isinstance(layer, nn.Linear) else 1
    product = (as_matrix(layer) @ patches(layer, x)).flatten(0, 1) + layer.bias.detach()[:, None]
    torch.testing.assert_close(product, layer(x).detach().movedim(dim, 0).flatten(1))


def test_products_of_many_columns_are_halved_right():
    columns = torch.randn(2, 301, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(columns), columns @ columns.transpose(1, 2))


@pytest.mark.parametrize("fisher", ["gauss-newton", "empirical"])
def test_single_precision_is_near_double(fisher):
    model, (images, labels) = make("residual"), data(8)
    exact = accumulated(model, [(images, labels)], fisher=fisher)
    single = accumulated(make("residual").float(), [(images.float(), labels)], fisher=fisher)
    for name, group in groups(model).items():
        other = groups(make("residual").float())[name]
        assert single(other).dtype == torch.float32
        assert exact(group).dtype == torch.float64
        torch.testing.assert_close(
            single.matrix(other), exact.matrix(group), rtol=1e-4, atol=1e-5 * float(exact.matrix(group).max())
        )


def test_batches_draw_the_signs_of_the_whole():
    model, (images, labels) = make("residual"), data()
    whole = accumulated(model, [(images, labels)])
    parts = accumulated(model, [(images[:1], labels[:1]), (images[1:4], labels[1:4]), (images[4:], labels[4:])])
    for group in groups(model).values():
        torch.testing.assert_close(parts.matrix(group), whole.matrix(group), rtol=1e-10, atol=1e-16)


class Twice(nn.Module):
    """A convolution that runs twice, the second time on what it wrote."""

    def __init__(self):
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.again(torch.tanh(self.stem(x))))
        return self.head(torch.relu(self.again(x)).mean((2, 3)))


def test_a_layer_that_runs_twice_has_both_calls_positions():
    torch.manual_seed(0)
    model, (images, labels) = Twice().double(), data(3)
    criterion = accumulated(model, [(images, labels)], fisher="empirical", repaired=False)
    rows, products = [], 0
    for image, label in zip(images, labels, strict=True):
        calls = []

        def keep(module, args, output, calls=calls):
            calls.append((args[0].detach(), output))
            return output.clone()

        handle = model.again.register_forward_hook(keep)
        loss = functional.cross_entropy(model(image[None]), label[None])
        handle.remove()
        for (entering, _), grad in zip(calls, torch.autograd.grad(loss, [y for _, y in calls]), strict=True):
            rows += [row.flatten() for row in patches_of(model.again, entering)]
            products = products + grad[0].flatten(1) @ grad[0].flatten(1).T
    factors = criterion._totals.factors["again"]
    torch.testing.assert_close(factors.gradient[0], products)
    torch.testing.assert_close(factors.moment(False)[0], sum(torch.outer(row, row) for row in rows) / len(rows))


class Scaled(nn.Linear):
    """A linear layer that computes something else with its weight."""

    def forward(self, x):
        return super().forward(x) * 2


def test_layers_without_factors_are_named(table):
    model, batch = make("depthwise"), data()
    with pytest.raises(CriterionError, match=r"'up' \(ConvTranspose2d\) is not a plain product.*take group-fisher"):
        accumulated(model, [batch])(group_of(model, "grouped"))
    model = make("flat")
    model.hidden.__class__ = Scaled
    criterion = accumulated(model, [batch])
    with pytest.raises(CriterionError, match=r"'hidden' \(Scaled\) is not a plain product"):
        criterion(group_of(model, "conv"))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(6, 64, dtype=torch.float64))

        def forward(self, x):
            return x @ self.matrix.T

    register_layer(Own, "in", (Slot("matrix", 1),), channel_dim=-1)
    register_layer(Own, "out", (Slot("matrix", 0),))
    model.hidden = Own()
    criterion = accumulated(model, [batch])
    with pytest.raises(
        CriterionError, match="'hidden' is a Own: only convolution and linear layers have Kronecker factors"
    ):
        criterion(group_of(model, "conv"))


def test_a_layer_too_wide_to_keep_is_named(monkeypatch):
    monkeypatch.setattr("hfp.importance.capture.factors.WIDEST", 32)
    model = make("flat")
    criterion = accumulated(model, [data()])
    with pytest.raises(CriterionError, match="'hidden' .* reads 64 values at once, more than the 32"):
        criterion(group_of(model, "conv"))
    assert criterion(group_of(model, "hidden")).shape == (6,)


def test_what_is_not_finite_or_has_no_gradient_is_refused():
    model, (images, labels) = make("residual"), data()
    with pytest.raises(CriterionError, match="the input of layer 'stem' is not finite"):
        accumulated(model, [(images * float("nan"), labels)])
    for message, forward in (
        ("logits have no gradient: is the output detached", lambda model, batch: model(batch[0]).detach()),
        ("no gradient reached", lambda model, batch: torch.ones(6, 5, requires_grad=True) * 2),
        (r"needs logits \[6, 2 or more\]", lambda model, batch: model(batch[0]).sum()),
    ):
        criterion = create("kronecker")
        with pytest.raises(CriterionError, match=message):
            criterion.accumulate(model, [(images, labels)], functional.cross_entropy, forward=forward)
        assert criterion.samples == 0
