"""Gates where channels meet without a layer that reads them one by one: norms' statistics, and attention."""

import pytest
import torch
from networks.criteria import data, gated, group_of, groups, make
from torch import nn
from torch.nn import functional

from hfp.importance import CriterionError, GroupFisherImportance
from hfp.importance.groups.members import members
from hfp.reconstruct import Coupling


def weighted_layer_norm(module, x, gate):
    """Layer norm whose mean and variance weigh channel c by gate[c]."""
    mean = (x * gate).sum(-1, keepdim=True) / gate.sum()
    variance = ((x - mean).square() * gate).sum(-1, keepdim=True) / gate.sum()
    return (x - mean) / (variance + module.eps).sqrt() * module.weight + module.bias


def weighted_group_norm(module, x, gate):
    """Group norm whose mean and variance weigh channel c by gate[c]."""
    parts = []
    for values, weights in zip(x.chunk(module.num_groups, 1), gate.chunk(module.num_groups), strict=True):
        weights = weights.view(1, -1, 1, 1).expand_as(values)
        mean = (values * weights).sum((1, 2, 3), keepdim=True) / weights.sum((1, 2, 3), keepdim=True)
        variance = ((values - mean).square() * weights).sum((1, 2, 3), keepdim=True)
        parts.append((values - mean) / (variance / weights.sum((1, 2, 3), keepdim=True) + module.eps).sqrt())
    return torch.cat(parts, 1) * module.weight.view(-1, 1, 1) + module.bias.view(-1, 1, 1)


def weighted_rms_norm(module, x, gate):
    """Root mean square norm whose mean weighs channel c by gate[c]."""
    square = (x.square() * gate).sum(-1, keepdim=True) / gate.sum()
    return x / (square + torch.finfo(x.dtype).eps).sqrt() * module.weight


def derivatives(model, gates, images, labels, width):
    """d loss / d gate for each sample; `gates(gate)` puts the gate into the model and returns a function to undo it."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        gate = torch.ones(width, dtype=torch.float64, requires_grad=True)
        undo = gates(gate)
        rows.append(torch.autograd.grad(functional.cross_entropy(model(image[None]), label[None]), gate)[0])
        undo()
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("name", "layer", "weighted"),
    [("attention", "patch", weighted_layer_norm), ("normed", "first", weighted_group_norm)],
)
def test_a_channel_counts_in_the_statistics_of_norms(name, layer, weighted):
    model, (images, labels) = make(name), data()
    group = group_of(model, layer)
    norms = [member for member in members(group) if isinstance(member.layer, (nn.LayerNorm, nn.GroupNorm))]
    assert norms

    def gates(gate):
        handles = gated(group, gate)
        for member in norms:
            member.layer.forward = lambda x, member=member: weighted(member.layer, x, gate)

        def undo():
            for handle in handles:
                handle.remove()
            for member in norms:
                del member.layer.forward

        return undo

    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    expected = derivatives(model, gates, images, labels, len(group[0].idxs))
    torch.testing.assert_close(criterion.gate_gradients(group)[:, 0], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("fused", [True, False])
def test_query_key_and_value_channels_are_gated_once_each(fused):
    model, (images, labels) = make("attention"), data()
    model.fused = fused
    group = groups(model)["proj"]

    def gates(gate):
        def scale(module, args, output):
            return output * torch.cat([gate, torch.ones_like(gate), gate])

        return model.qkv.register_forward_hook(scale).remove

    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    expected = derivatives(model, gates, images, labels, 8)
    torch.testing.assert_close(criterion.gate_gradients(group)[:, 0], expected, rtol=1e-9, atol=1e-13)


def test_what_linear_layers_write_is_read_before_it_is_overwritten():
    model, (images, labels) = make("in-place"), data()
    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    out = criterion._batches[0].rows["hidden", "out"][:, 0]

    def gates(gate):
        return model.hidden.register_forward_hook(lambda module, args, output: output * gate).remove

    torch.testing.assert_close(out, derivatives(model, gates, images, labels, 4), rtol=1e-10, atol=1e-14)


class Tokens(nn.Module):
    """A stream of tokens that torch's own attention and a root mean square norm read."""

    def __init__(self, batch_first=True, need_weights=False):
        super().__init__()
        self.patch = nn.Linear(12, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 5)
        self.batch_first, self.need_weights = batch_first, need_weights

    def forward(self, x):
        x = self.patch(functional.unfold(x, 4, stride=2)[:, :12].transpose(1, 2))
        y = x if self.batch_first else x.transpose(0, 1)
        y = self.attention(y, y, value=y, need_weights=self.need_weights)[0]
        x = x + (y if self.batch_first else y.transpose(0, 1))
        return self.head(self.norm(x).mean(1))


def tokens(**options):
    torch.manual_seed(0)
    model = Tokens(**options).double()
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    return model.eval()


def coupled(model, name):
    coupling = Coupling.trace(model, data(2)[0])
    return coupling.groups_of(model)(name)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_torch_s_attention_reads_its_inputs_and_its_heads(batch_first, need_weights):
    model, (images, labels) = tokens(batch_first=batch_first, need_weights=need_weights), data()
    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    fast = torch.backends.mha.get_fastpath_enabled()
    assert fast

    def heads(gate):
        def scale(x, weight, bias=None):
            wide = gate.repeat_interleave(4) if weight is model.attention.out_proj.weight else 1
            return original(x * wide, weight, bias)

        original, functional.linear = functional.linear, scale
        return lambda: setattr(functional, "linear", original)

    if need_weights:
        with pytest.raises(CriterionError, match="a part of every head of 'attention'"):
            criterion(coupled(model, "attention.in_proj_weight"))
        return
    found = criterion.gate_gradients(coupled(model, "attention.in_proj_weight"))[:, 0]
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(found, derivatives(model, heads, images, labels, 2), rtol=1e-9, atol=1e-13)

    def stream(gate):
        def attended(module, args, kwargs):
            return tuple(x * gate for x in args), {**kwargs, "value": kwargs["value"] * gate}

        handles = [
            model.attention.register_forward_pre_hook(attended, with_kwargs=True),
            model.head.register_forward_pre_hook(lambda module, args: (args[0] * gate,)),
        ]
        model.norm.forward = lambda x: weighted_rms_norm(model.norm, x, gate)

        def undo():
            del model.norm.forward
            for handle in handles:
                handle.remove()

        return undo

    found = criterion.gate_gradients(coupled(model, "patch"))[:, 0]
    torch.testing.assert_close(found, derivatives(model, stream, images, labels, 8), rtol=1e-9, atol=1e-13)


class NormOverImages(nn.Module):
    """Normalises channels and pixels together; `gate` weighs channels in the statistics, and where they are read."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 1), nn.LayerNorm([6, 4, 5]), nn.Conv2d(6, 2, 3)
        self.gate = None

    def forward(self, x):
        x = self.first(x)
        if self.gate is None:
            return self.second(self.norm(x).relu()).mean((2, 3))
        gate = self.gate[:, :, None, None].expand_as(x)
        weights, over = gate / gate.sum((1, 2, 3), keepdim=True), {"dim": (1, 2, 3), "keepdim": True}
        mean = (weights * x).sum(**over)
        deviation = ((weights * (x - mean).square()).sum(**over) + self.norm.eps).sqrt()
        normal = (x - mean) / deviation * self.norm.weight + self.norm.bias
        return self.second(normal.relu() * gate).mean((2, 3))


def test_a_norm_over_channels_and_pixels_counts_with_its_statistics():
    torch.manual_seed(0)
    model, x, labels = NormOverImages().double(), torch.randn(5, 3, 4, 5).double(), torch.randint(2, (5,))
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    criterion = GroupFisherImportance()
    criterion.accumulate(model, [(x, labels)], functional.cross_entropy)
    found = criterion(Coupling.trace(model, x).groups_of(model)("first"))
    model.gate = torch.ones(5, 6, dtype=torch.float64, requires_grad=True)
    loss = functional.cross_entropy(model(x), labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, model.gate)
    torch.testing.assert_close(found, expected.square().mean(0) / 2)
