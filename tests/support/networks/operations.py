"""Small networks, each with one way in which channels travel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {}


class Net(nn.Module):
    """A network from its layers and a function of (layers, input)."""

    def __init__(
        self, forward: Callable[..., Tensor], sizes: dict[str, object] | None = None, **layers: object
    ) -> None:
        super().__init__()
        self.function = forward
        for name, value in {**layers, **(sizes or {})}.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def network(name: str, *shape: int) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        NETWORKS[name] = (make, shape)
        return make

    return register


def conv(i: int, o: int, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


@network("residual", 2, 3, 8, 8)
def residual() -> nn.Module:
    return Net(
        lambda s, x: s.head(F.relu((h := s.bn(s.a(x))) + s.c(F.relu(s.b(h)))).mean((2, 3))),
        a=conv(3, 12), bn=nn.BatchNorm2d(12), b=conv(12, 10), c=conv(10, 12), head=nn.Linear(12, 5),
    )  # fmt: skip


@network("depthwise", 2, 3, 8, 8)
def depthwise() -> nn.Module:
    return nn.Sequential(conv(3, 8), conv(8, 8, groups=8), nn.PReLU(8), conv(8, 16, groups=8), conv(16, 4, 1))


@network("grouped", 2, 3, 8, 8)
def grouped() -> nn.Module:
    return nn.Sequential(
        conv(3, 16), conv(16, 32, groups=8), nn.GroupNorm(8, 32), conv(32, 6), conv(6, 6, groups=2), conv(6, 4)
    )


@network("transposed", 2, 3, 6, 6)
def transposed() -> nn.Module:
    return nn.Sequential(
        conv(3, 12), nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 16, 2, 2, groups=4), conv(16, 4, 1)
    )


@network("dense", 2, 3, 8, 8)
def dense() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        x = torch.cat([x, s.b(F.relu(s.n(x)))], 1)
        return s.head(torch.cat([s.c(x), x], 1))

    return Net(forward, a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 6), c=conv(14, 5), head=conv(19, 3, 1))


@network("split by an attribute", 2, 3, 8, 8)
def split_attribute() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        left, right = torch.split(s.a(x), s.parts, 1)
        return s.head(torch.cat([s.b(left), right], 1))

    return Net(forward, {"parts": [4, 12]}, a=conv(3, 16), b=conv(4, 4), head=conv(16, 3, 1))


@network("slices up to an attribute", 2, 3, 8, 8)
def slices() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x, y = s.a(x), s.b(x)
        return s.head(torch.cat([y[:, : s.width] + x, y[:, s.width :]], 1))

    return Net(forward, {"width": 6}, a=conv(3, 6), b=conv(3, 11), head=conv(11, 3, 1))


@network("chunks", 2, 3, 8, 8)
def chunks() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        value, gate = s.a(x).chunk(2, 1)
        return s.head(F.glu(s.b(value * gate.sigmoid()), 1))

    return Net(forward, a=conv(3, 16), b=conv(8, 12), head=conv(6, 3, 1))


@network("channel shuffle", 2, 3, 8, 8)
def shuffle() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        b, c, h, w = x.shape
        return s.head(s.b(x.view(b, 4, c // 4, h, w).transpose(1, 2).reshape(b, c, h, w)))

    return Net(forward, a=conv(3, 16), b=conv(16, 8, groups=4), head=conv(8, 3, 1))


@network("pixel shuffle", 2, 3, 6, 6)
def pixel_shuffle() -> nn.Module:
    return nn.Sequential(conv(3, 24), nn.PixelShuffle(2), conv(6, 5), nn.PixelUnshuffle(2), conv(20, 3, 1))


@network("flattened", 2, 3, 8, 8)
def flattened() -> nn.Module:
    return nn.Sequential(conv(3, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 4))


@network("windows", 2, 3, 8, 8)
def windows() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = F.unfold(s.a(x), 2, stride=2)
        return s.head(F.fold(s.b(x.transpose(1, 2)).transpose(1, 2), (8, 8), 2, stride=2))

    return Net(forward, a=conv(3, 6), b=nn.Linear(24, 32), head=conv(8, 3, 1))


@network("squeeze and excitation", 2, 3, 8, 8)
def excitation() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.head(x * s.up(F.relu(s.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid())

    return Net(forward, a=conv(3, 12), down=conv(12, 4, 1), up=conv(4, 12, 1), head=conv(12, 3, 1))


@network("padded channels", 2, 3, 8, 8)
def padded() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.head(s.b(x) + F.pad(x, (0, 0, 0, 0, s.before, s.after)))

    return Net(forward, {"before": 4, "after": 6}, a=conv(3, 8), b=conv(8, 18), head=conv(18, 3, 1))


@network("standardised weights", 2, 3, 8, 8)
def standardised() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        w = s.b.weight
        w = F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True).reshape_as(w)
        return s.head(F.conv2d(s.a(x), w, s.b.bias, padding=1))

    return Net(forward, a=conv(3, 8), b=conv(8, 10), head=conv(10, 3, 1))


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, style: str) -> None:
        super().__init__()
        self.heads, self.size, self.width, self.style = heads, channels // heads, channels, style
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.randn(10, heads))
        self.register_buffer("index", torch.arange(25).remainder(10).view(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        size = c // self.heads if self.style == "computed" else self.size
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        if self.style == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            bias = self.bias[self.index.view(-1)].view(5, 5, -1).permute(2, 0, 1)
            y = ((q @ k.transpose(-2, -1)) * 0.3 + bias).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, c if self.style == "computed" else self.width))


def transformer(style: str) -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.embed(x) + s.place
        x = torch.cat([s.cls.expand(len(x), -1, -1), x], 1)
        x = x + s.gamma * s.attention(s.norm1(x))
        return s.head((x + s.mlp(s.norm2(x)))[:, 0])

    return Net(
        forward, embed=nn.Linear(6, 24), place=nn.Parameter(torch.randn(1, 4, 24)),
        cls=nn.Parameter(torch.randn(1, 1, 24)), gamma=nn.Parameter(torch.rand(24)), norm1=nn.LayerNorm(24),
        attention=Attention(24, 6, style), norm2=nn.LayerNorm(24),
        mlp=nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24)), head=nn.Linear(24, 5),
    )  # fmt: skip


for _style in ("stated", "computed", "fused"):
    NETWORKS[f"attention, {_style}"] = (lambda style=_style: transformer(style), (2, 4, 6))


@network("merged patches", 2, 4, 4, 3)
def patches() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return s.head(torch.roll(s.reduce(s.norm(x)), (1, 1), (1, 2)))

    return Net(
        forward, a=nn.Linear(3, 8), norm=nn.LayerNorm(32), reduce=nn.Linear(32, 16, bias=False), head=nn.Linear(16, 3)
    )


@network("mixer", 2, 6, 5)
def mixer() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.embed(x)
        return s.head(x + s.tokens(x.transpose(1, 2)).transpose(1, 2))

    return Net(
        forward,
        embed=nn.Linear(5, 8),
        tokens=nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)),
        head=nn.Linear(8, 3),
    )


@network("einsum and bare parameters", 2, 6, 5)
def einsum() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.head(torch.einsum("bnc,ch->bnh", s.embed(x) * s.scale, s.mix).relu() @ s.back)

    return Net(
        forward, embed=nn.Linear(5, 8), scale=nn.Parameter(torch.rand(8)), mix=nn.Parameter(torch.randn(8, 10)),
        back=nn.Parameter(torch.randn(10, 7)), head=nn.Linear(7, 3),
    )  # fmt: skip


@network("shared layer", 2, 5)
def shared() -> nn.Module:
    return Net(
        lambda s, x: s.head(s.b(F.relu(s.b(s.a(x))))), a=nn.Linear(5, 8), b=nn.Linear(8, 8), head=nn.Linear(8, 3)
    )


@network("recurrent", 2, 4, 5)
def recurrent() -> nn.Module:
    return Net(
        lambda s, x: s.head(s.b(s.a(x))[0]), a=nn.Linear(5, 8), b=nn.LSTM(8, 6, batch_first=True), head=nn.Linear(6, 3)
    )


@network("torch's own attention", 2, 4, 12)
def torch_attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    return Net(lambda s, x: s.head(s.b(s.a(x))), a=nn.Linear(12, 12), b=layer, head=nn.Linear(12, 3))


@network("a size written in the code", 2, 3, 8, 8)
def written() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        return s.head(s.a(x).reshape(len(x), 6, -1).mean(-1).relu() + s.b(x).mean((2, 3)) @ s.w)

    return Net(forward, a=conv(3, 6), b=conv(3, 10), w=nn.Parameter(torch.randn(10, 6)), head=nn.Linear(6, 3))


@network("the largest channels", 2, 5)
def largest() -> nn.Module:
    return Net(
        lambda s, x: s.head(s.b(F.relu(s.a(x))).topk(4).values),
        a=nn.Linear(5, 10),
        b=nn.Linear(10, 8),
        head=nn.Linear(4, 3),
    )


@network("deformable attention", 2, 16, 3)
def deformable() -> nn.Module:
    """As many heads as points, and a head's size that is divided out, as in Deformable DETR."""

    def forward(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        b, n, _ = x.shape
        value = s.value(x).view(b, n, s.n_heads, s.d_model // s.n_heads)
        places = s.places(x).view(b, n, s.n_heads, s.n_points, 2).tanh()
        weights = s.weights(x).view(b, n, s.n_heads, s.n_points).softmax(-1)
        value = value.flatten(2).transpose(1, 2).reshape(b * s.n_heads, s.d_model // s.n_heads, 4, 4)
        found = F.grid_sample(value, places.transpose(1, 2).flatten(0, 1), align_corners=False)
        found = (found * weights.transpose(1, 2).reshape(b * s.n_heads, 1, n, s.n_points)).sum(-1)
        return s.head(s.b(found.view(b, s.d_model, n).transpose(1, 2)))

    return Net(
        forward,
        {"d_model": 24, "n_heads": 4, "n_points": 4},
        a=nn.Linear(3, 24), value=nn.Linear(24, 24), places=nn.Linear(24, 32), weights=nn.Linear(24, 16),
        b=nn.Linear(24, 12), head=nn.Linear(12, 3),
    )  # fmt: skip


class CheckedAttention(nn.Module):
    """Attention that checks its input's width before anything else, and gives its result this width, as in FSMT."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = width, heads, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        steps, batch, width = x.shape
        if width != self.embed_dim:
            raise ValueError("another width")
        read = x if memory is None else memory
        k, v = (of(read).view(-1, batch, self.num_heads, self.head_dim).permute(1, 2, 0, 3) for of in (self.k, self.v))
        q = self.q(x).view(-1, batch * self.num_heads, self.head_dim).transpose(0, 1)
        k, v = (part.reshape(batch * self.num_heads, -1, self.head_dim) for part in (k, v))
        found = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.o(found.transpose(0, 1).contiguous().view(steps, batch, width))


@network("attention that checks its width", 5, 2, 16)
def checked() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        y = s.embed(x)
        for own, cross in ((s.own, s.cross), (s.own2, s.cross2)):
            y = y + own(y)
            y = y + cross(y, x)
        return s.head(y)

    parts = {name: CheckedAttention() for name in ("own", "cross", "own2", "cross2")}
    return Net(forward, embed=nn.Linear(16, 16), head=nn.Linear(16, 3), **parts)
