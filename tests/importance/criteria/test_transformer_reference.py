"""The residual stream of a small transformer against references in double precision, one sample and channel at a time.

It holds torch's own attention, layer scale and layer norms; groups are torch-pruning's own and this project's.
"""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F

from hfp.importance import create
from hfp.reconstruct import Coupling, record

WIDTH, SAMPLES = 8, 5
pytestmark = pytest.mark.filterwarnings("ignore:Unwrapped parameters")


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.place = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(1, 4, WIDTH))
        self.n1, self.n2, self.n3 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.2)
        self.up, self.down, self.head = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x, gates=None):
        g = torch.ones(WIDTH, dtype=x.dtype) if gates is None else gates
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        y = gated_norm(self.n1, x, g) * g  # what the attention reads
        x = x + self.scale * self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(gated_norm(self.n2, x, g) * g)))
        return self.head(gated_norm(self.n3, x, g).mean(1) * g)


def gated_norm(norm: nn.LayerNorm, x, gates):
    """A layer norm in whose statistics every channel counts by its gate; at gates of 1 it is the layer norm."""
    mean = (gates * x).sum(-1, keepdim=True) / gates.sum()
    variance = (gates * (x - mean) ** 2).sum(-1, keepdim=True) / gates.sum()
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


class Plain(Transformer):
    """The same as its layers compute it, for tracing."""

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        y = self.n1(x)
        x = x + self.scale * self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.n2(x))))
        return self.head(self.n3(x).mean(1))


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(2)
    model = Plain().double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, torch.randn(SAMPLES, 3, 8, 8, dtype=torch.float64), torch.randint(0, 5, (SAMPLES,))


def groups(model, x):
    graph = tp.DependencyGraph().build_dependency(model, x[:2])
    yield graph.get_pruning_group(model.patch, tp.prune_conv_out_channels, list(range(WIDTH)))
    yield Coupling.trace(model, x[:2]).groups_of(model)("patch")


def scores(name, problem, **options):
    model, x, y = problem
    criterion = create(name, **options)
    criterion.accumulate(model, [(x[:3], y[:3]), (x[3:], y[3:])], F.cross_entropy)
    return [criterion(group) for group in groups(model, x)]


def gate_gradients(problem):
    model, x, y = problem
    reference = Transformer().double()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(reference(x), model(x))
    rows = []
    for n in range(SAMPLES):
        gates = torch.ones(WIDTH, dtype=torch.float64, requires_grad=True)
        rows.append(torch.autograd.grad(F.cross_entropy(reference(x[n : n + 1], gates), y[n : n + 1]), gates)[0])
    return torch.stack(rows)


def test_gates_of_the_residual_stream_are_the_derivatives_by_definition(problem):
    v = gate_gradients(problem)
    for found in scores("group-fisher", problem):
        torch.testing.assert_close(found, v.square().mean(0) / 2, rtol=1e-9, atol=1e-15)
    for found in scores("group-fisher", problem, fisher="off", first_order="signed"):
        torch.testing.assert_close(found, -v.mean(0), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("form", ["curvature", "taylor"])
def test_weights_that_a_channel_takes_along_count_once_each(problem, form):
    model, x, y = problem
    parameters = dict(model.named_parameters())
    each = [torch.autograd.grad(F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]), list(parameters.values()))
            for n in range(SAMPLES)]  # fmt: skip
    expected = torch.zeros(WIDTH, dtype=torch.float64)
    for channel in range(WIDTH):
        removed = removed_entries(model, x, channel)
        for place, (name, weight) in enumerate(parameters.items()):
            gradients = torch.stack([sample[place] for sample in each])
            g, h = gradients.mean(0), gradients.square().mean(0)
            cost = h * weight**2 if form == "curvature" else h * weight**2 / 2 - g * weight
            expected[channel] += cost[removed[name]].sum().item()
    found = scores("empirical-fisher", problem, form=form)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def removed_entries(model, x, channel):
    """Which entries of every parameter torch-pruning's own surgery removes with one channel."""
    own = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(own, x[:2])
    with record(own) as recording:
        graph.get_pruning_group(own.patch, tp.prune_conv_out_channels, [channel]).prune()
    return {name: ~recording.index_map.tensors[name].mask() for name, _ in model.named_parameters()}
