"""Small networks with every kind of coupling, and what the tests ask of them."""

import warnings

import torch
import torch_pruning as tp
from torch import nn

from hfp.importance.groups.members import members


class Residual(nn.Module):
    """A stream with two writers and three readers, batch-norm, and a convolution that is both."""

    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.a = nn.Sequential(nn.Conv2d(width, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.b = nn.Conv2d(4, width, 3, padding=1)
        self.side = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.b(self.a(x)))
        x = x + self.side(x)
        return self.head(x.mean((2, 3)))


class Depthwise(nn.Module):
    """Pointwise, depthwise, grouped and transposed convolutions, concatenation, PReLU."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.act = nn.PReLU(6)
        self.point = nn.Conv2d(6, 8, 1)
        self.grouped = nn.Conv2d(8, 4, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.other = nn.Conv2d(6, 3, 1, stride=1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.act(self.depthwise(self.first(x)))
        deep = torch.tanh(self.up(self.grouped(torch.relu(self.point(x)))))
        return self.head(torch.cat([deep.mean((2, 3)), self.other(x).mean((2, 3))], 1))


class Flat(nn.Module):
    """Channels that become several features each when flattened."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.hidden = nn.Linear(4 * 16, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 4)
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Attention(nn.Module):
    """A pre-norm transformer block with position embedding, layer scale, and one linear layer for q, k and v."""

    def __init__(self, width=8, heads=2, fused=True):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.patch = nn.Linear(12, width)
        self.position = nn.Parameter(torch.randn(1, 16, width) / 4)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.rand(width))
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 10)
        self.down = nn.Linear(10, width)
        self.head = nn.Linear(width, 5)

    def attend(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))

    def forward(self, x):
        x = nn.functional.unfold(x, 2, stride=2).transpose(1, 2)
        x = self.patch(x) + self.position
        x = x + self.attend(self.norm(x)) * self.scale
        x = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Normed(nn.Module):
    """Group norm and instance norm between convolutions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.group = nn.GroupNorm(2, 6)
        self.second = nn.Conv2d(6, 4, 3, padding=1)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.group(self.first(x)))
        return self.head(torch.relu(self.instance(self.second(x))).square().mean((2, 3)))


class InPlace(nn.Module):
    """Activations that overwrite what a convolution or linear layer has written."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.SiLU(inplace=True)
        self.second = nn.Conv2d(4, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.hidden = nn.Linear(6, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.relu(self.norm(self.second(x)))
        return self.head(self.act(self.hidden(x.mean((2, 3)))))


NETWORKS = {
    "residual": Residual,
    "depthwise": Depthwise,
    "flat": Flat,
    "attention": Attention,
    "normed": Normed,
    "in-place": InPlace,
}


def make(name, seed=0, dtype=torch.float64):
    """A network with weights and statistics away from their defaults."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return model.to(dtype).eval()


def data(samples=6, seed=1, dtype=torch.float64, size=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 3, size, size, generator=generator, dtype=dtype)
    return images, torch.randint(5, (samples,), generator=generator)


def heads(model):
    return {module.qkv: module.heads for module in model.modules() if isinstance(module, Attention)}


def groups(model, size=8):
    """Every prunable group of the model, by the name of its root, as a pruner would score it."""
    example = data(2, size=size, dtype=next(model.parameters()).dtype)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model, example, importance=lambda group: None, ignored_layers=[model.head], num_heads=heads(model)
        )
    found = {}
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers):
        if pruner._is_atten_group(group)[0]:
            group = pruner._downstream_node_as_root_if_attention(group)
        found[pruner.DG._module2name[group[0].dep.target.module]] = group
    return found


def group_of(model, name, size=8):
    """The group in which the layer's output channels are."""
    for group in groups(model, size).values():
        for item in group:
            out = group._DG.is_out_channel_pruning_fn(item.dep.handler)
            if out and group._DG._module2name.get(item.dep.target.module) == name:
                return group
    raise AssertionError(f"no group holds {name}")


def gated(group, gate):
    """Hooks that scale the group's channels by the gate wherever a convolution or linear layer reads them."""
    handles = []
    for member in members(group):
        if member.direction == "in":
            dim = -1 if isinstance(member.layer, nn.Linear) else 1

            def scale(module, args, member=member, dim=dim):
                ones = torch.ones(args[0].shape[dim], dtype=gate.dtype)
                full = ones.index_put((member.indices,), gate[member.positions])
                shape = [1] * args[0].dim()
                shape[dim] = -1
                return (args[0] * full.view(shape),)

            handles.append(member.layer.register_forward_pre_hook(scale))
    return handles


def gate_derivatives(model, group, quantity, images, labels):
    """d quantity(output, label) / d gate by autograd, one sample at a time: `[samples, width]`."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        gate = torch.ones(len(group[0].idxs), dtype=images.dtype, requires_grad=True)
        handles = gated(group, gate)
        rows.append(torch.autograd.grad(quantity(model(image[None]), label[None]), gate)[0])
        for handle in handles:
            handle.remove()
    return torch.stack(rows)
