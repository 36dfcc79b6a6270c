"""Networks that draw random numbers, decide by values, compute with sizes, or move rows by number."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from networks.operations import Net, conv

EDGES = torch.tensor([[0, 1, 2, 3, 4, 4], [1, 2, 3, 4, 0, 2]])


def linear(i: int = 6, o: int = 10) -> nn.Linear:
    return nn.Linear(i, o)


def _mlp(body: object) -> nn.Module:  # a: [.., 6] -> 10, b: 10 -> 10, head: 10 -> 3
    return Net(body, a=linear(), b=linear(10), head=linear(10, 3))


def graph_by_index_add() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.head(s.b(torch.zeros_like(y).index_add(0, EDGES[1], y[EDGES[0]]).relu()).relu())

    return _mlp(body)


def graph_by_scatter() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.a(x)
        places = EDGES[1][:, None].expand(-1, y.shape[1])
        y = torch.zeros_like(y).scatter_add(0, places, y[EDGES[0]]).relu()
        z = s.b(y)
        return s.head(torch.zeros_like(z).scatter_reduce(0, places, z[EDGES[0]], "mean").relu())

    return _mlp(body)


def copied_rows() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.b(s.a(x).relu())
        return s.head(torch.zeros_like(y).index_copy(0, torch.tensor([2, 0]), y[:2]).relu())

    return _mlp(body)


def rows_over_a_threshold() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.head(s.b(s.a(x).relu()).relu())
        return y[y[:, 0] > y[:, 0].mean()]

    return _mlp(body)


def selected_by_a_wide_mask() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.a(x[:, None].expand(-1, 2, -1)).relu()
        return s.head(s.b(y[(x[:, :2] > 0)]).relu())

    return _mlp(body)


def routed_experts() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.a(x).relu()
        first = s.router(y)[:, 0] > 0
        z = torch.zeros_like(y)
        z[first] = s.b(y[first])
        z[~first] = s.c(y[~first])
        return s.head(y + z)

    return Net(body, a=linear(), b=linear(10), c=linear(10), router=linear(10, 1), head=linear(10, 3))


def masked_rows() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.a(x).relu()
        y = y.clone()
        y[x[:, 0] > 0] = s.token
        y[y < 0.1] = 0.0
        return s.head(s.b(y).relu())

    return Net(body, a=linear(), b=linear(10), head=linear(10, 3), token=nn.Parameter(torch.randn(10)))


def written_in_place() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.b(s.a(x).relu())
        y.abs_().masked_fill_(y < 0.1, 0.0).masked_fill_(x[:, :1] > 0, torch.tensor(2.0))
        return s.head(torch.nn.functional.gelu(y))

    return Net(body, a=linear(), b=linear(10), head=linear(10, 3))


def scattered_tokens() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y, image = s.a(x), s.b(s.a(x[:2]).relu())
        mask = (torch.arange(len(x)) < 2)[:, None].expand_as(y)
        return s.head(y.masked_scatter(mask, image).relu())

    return _mlp(body)


def both_masks() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        return s.head(s.b(s.a(x).relu() * s.on).relu())

    net = _mlp(body)
    net.register_buffer("on", torch.arange(10) % 3 > 0)
    return net


def bilinear() -> nn.Module:
    return Net(
        lambda s, x: s.head(s.two(s.a(x).relu(), s.b(x).relu())),
        a=linear(), b=linear(6, 8), two=nn.Bilinear(10, 8, 7), head=linear(7, 3),
    )  # fmt: skip


def packed_sequences() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        steps = s.a(x[:, None].expand(-1, 4, -1)).relu()
        packed = nn.utils.rnn.pack_padded_sequence(steps, torch.tensor([4, 3, 3, 2, 1]), batch_first=True)
        found, _ = nn.utils.rnn.pad_packed_sequence(s.rnn(packed)[0], batch_first=True)
        return s.head(found)

    return Net(body, a=linear(), rnn=nn.LSTM(10, 8, batch_first=True), head=linear(8, 3))


def unpooled() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(s.a(x).relu(), 2, return_indices=True)
        return s.head(F.max_unpool2d(s.b(y).relu(), places, 2))

    return Net(body, a=conv(3, 8), b=conv(8, 8), head=conv(8, 2))


def regions() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        boxes = torch.tensor([[0.0, 0, 0, 5, 5], [1, 2, 2, 7, 7]], dtype=x.dtype)
        return s.head(torchvision.ops.roi_align(s.b(s.a(x).relu()), boxes, 3))

    return Net(body, a=conv(3, 8), b=conv(8, 8), head=conv(8, 2))


def deformable() -> nn.Module:
    layer = torchvision.ops.DeformConv2d(8, 8, 3, padding=1)
    return Net(
        lambda s, x: s.head(s.b(s.a(x).relu(), s.move(x)).relu()),
        a=conv(3, 8), b=layer, move=conv(3, 18), head=conv(8, 2),
    )  # fmt: skip


def gated_by_the_largest() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        y = s.a(x[: len(x) - int(x.sum() > 1e9)]).relu()  # a number that is read keeps it from running without data
        scores = s.gate(y)
        largest, which = scores.max(-1, keepdim=True)
        gates = scores.masked_fill(scores < largest - 0.01, -100.0).softmax(-1)
        return s.head(s.b(y).relu()) * (1 + gates.gather(-1, which))

    return Net(body, a=linear(), b=linear(10), gate=linear(10, 16), head=linear(10, 3))


ROWS, IMAGES = (5, 6), (2, 3, 8, 8)
MOVING = {
    "index_add": (graph_by_index_add, ROWS),
    "scatter_add and scatter_reduce": (graph_by_scatter, ROWS),
    "index_copy": (copied_rows, ROWS),
    "rows over a threshold": (rows_over_a_threshold, ROWS),
    "a mask of two dimensions": (selected_by_a_wide_mask, ROWS),
    "routed experts": (routed_experts, ROWS),
    "a gate by the largest score": (gated_by_the_largest, ROWS),
    "rows and entries written by mask": (masked_rows, ROWS),
    "written in place": (written_in_place, ROWS),
    "masked_scatter": (scattered_tokens, ROWS),
    "a buffer of truth values": (both_masks, ROWS),
    "a bilinear layer": (bilinear, ROWS),
    "packed sequences": (packed_sequences, ROWS),
    "max_unpool2d": (unpooled, IMAGES),
    "regions of images": (regions, IMAGES),
    "a deformable convolution": (deformable, IMAGES),
}


def sampling() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        mean, spread = s.b(s.a(x).relu()), s.c(x)
        return s.head(mean + torch.randn_like(mean) * spread.exp())

    return Net(body, a=linear(), b=linear(10), c=linear(6), head=linear(10, 3))


def dropping() -> nn.Module:
    return _mlp(lambda s, x: s.head(F.dropout(s.b(F.dropout(s.a(x).relu(), 0.3, True)).relu(), 0.2, True)))


def filled() -> nn.Module:
    def body(s: Net, x: Tensor) -> Tensor:
        out = torch.empty(len(x), 3, dtype=x.dtype)
        out[:] = s.head(s.b(s.a(x).relu()).relu())
        return out

    return _mlp(body)


def around() -> nn.Module:
    ring = conv(8, 8, padding_mode="circular")
    return Net(lambda s, x: s.head(s.b(s.a(x).relu()).relu()), a=conv(3, 8), b=ring, head=conv(8, 2, 1))


def chance_in_python() -> nn.Module:
    import random

    def body(s: Net, x: Tensor) -> Tensor:
        y = s.a(x).relu()
        for _ in range(random.randrange(1, 6)):
            y = s.b(y).relu()
        return s.head(y)

    return _mlp(body)


RANDOM = {
    "a sample of a distribution": (sampling, ROWS),
    "dropout in evaluation": (dropping, ROWS),
    "memory filled later": (filled, ROWS),
    "circular padding": (around, IMAGES),
    "layers repeated by chance": (chance_in_python, ROWS),
}
