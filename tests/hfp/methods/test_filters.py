"""Norms of channels that recurrent layers and attention write, by which FedMP, DapperFL and FIARSE choose."""

import pytest
import torch
from torch import nn

from hfp.errors import InputError
from hfp.methods.blocks.filters import filter_scores
from hfp.methods.blocks.magnitude import FilterRows
from hfp.reconstruct import Coupling


class Recurrent(nn.Module):
    """A recurrent layer, whose hidden channels no convolution or linear layer writes."""

    def __init__(self):
        super().__init__()
        self.memory, self.classifier = nn.GRU(16, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.classifier(self.memory(x)[0][:, -1])

    def rows(self, entries):
        """Sum entries over what each hidden channel has in the three gates."""
        both = torch.cat([entries["memory.weight_ih_l0"], entries["memory.weight_hh_l0"]], 1)
        return both.view(3, 8, -1).sum((0, 2))


class Attention(nn.Module):
    """Attention of eight heads, none of which a linear layer writes."""

    def __init__(self):
        super().__init__()
        self.embedding, self.classifier = nn.Linear(16, 16), nn.Linear(16, 2)
        self.attention = nn.MultiheadAttention(16, 8, batch_first=True)

    def forward(self, x):
        x = self.embedding(x)
        return self.classifier(self.attention(x, x, x, need_weights=False)[0].mean(1))

    def rows(self, entries):
        """Sum entries over what each head has in queries, keys and values."""
        return entries["attention.in_proj_weight"].view(3, 8, -1).sum((0, 2))


class Bare(nn.Module):
    """Parameters that inputs are multiplied by, of which nothing tells which of them write channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.rand(16, 8)), nn.Parameter(torch.rand(8, 4))
        self.classifier = nn.Linear(4, 2)

    def forward(self, x):
        return self.classifier(((x @ self.first).relu() @ self.second).relu().mean(1))


@pytest.mark.parametrize("kind", [Recurrent, Attention])
def test_channels_that_no_layer_of_one_weight_writes_have_the_norms_of_their_rows(kind):
    torch.manual_seed(0)
    model = kind()
    groups = Coupling.trace(model, torch.rand(2, 5, 16), [model.classifier])
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    (scores,) = (found for found in filter_scores(groups, model, weights).values() if len(found) == 8)
    torch.testing.assert_close(scores, model.rows({name: weight.abs() for name, weight in weights.items()}))
    rows = FilterRows.of(groups, model)
    (norms,) = (found for found in rows.by_group(rows.norms(weights)).values() if len(found) == 8)
    torch.testing.assert_close(norms, model.rows({name: weight.square() for name, weight in weights.items()}).sqrt())


def test_rows_of_parameters_that_may_read_the_channels_do_not_count():
    model = Bare()
    groups = Coupling.trace(model, torch.rand(2, 5, 16), [model.classifier])
    scores = filter_scores(groups, model, model.state_dict())
    assert len(scores) == 2
    assert not any(found.any() for found in scores.values())
    with pytest.raises(InputError, match="fiarse finds no weights that write the channels of this model"):
        FilterRows.of(groups, model)
