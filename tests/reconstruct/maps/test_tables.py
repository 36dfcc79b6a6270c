"""What maps, plans, recordings and couplings show of themselves: a line, however large the model, or a table."""

import pytest
import torch
from torch import nn

from hfp.reconstruct import Coupling, IndexMap, Plan, Pruned, Recording, TensorMap, compact_model, record


class Deep(nn.Module):
    def __init__(self, layers=60):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def coupling():
    return Coupling.trace(Deep(), torch.randn(2, 8))


@pytest.fixture(scope="module")
def plan(coupling):
    return coupling.plan({name: range(0, size, 2) for name, size in coupling.sizes.items()})


def test_each_shows_itself_in_one_line_with_what_is_kept(coupling, plan):
    index_map = coupling.index_map(plan)
    kept, full = index_map.kept_entries, index_map.full_entries
    shown = {
        repr(index_map): [f"{kept:,} of {full:,} entries", "of 120 tensors", "1 set of kept channels"],
        repr(plan): ["236 of 472 channels", "59 of 59 coupled groups"],
        repr(coupling): ["472 channels in 59 coupled groups", "1 layer keeps all outputs"],
        repr(Pruned(compact_model(Deep(), index_map), index_map, {})): ["a Deep", f"{kept:,} of {full:,}"],
        repr(Recording(Deep())): ["open", "0 of 120 tensors"],
        repr(index_map.tensors["layers.0.weight"]): ["[8, 8] -> [4, 8]", "dim 0: 0 2 4 6"],
    }
    for text, parts in shown.items():
        assert "\n" not in text and len(text) < 160
        for part in parts:
            assert part in text, (part, text)


def test_notebooks_get_tables_that_stay_short_and_are_escaped(coupling, plan):
    index_map = coupling.index_map(plan)
    with record(Deep()) as recording:
        pass
    for value in (index_map, plan, recording):
        table = value._repr_html_()
        assert table.startswith("<table>") and table.endswith("</table>")
        assert table.count("<tr>") < 40
    assert "and 89 more" in index_map._repr_html_()
    assert "&lt;a&gt;" in Plan({"<a>": 2}, {})._repr_html_()


def test_a_map_that_keeps_everything_says_so():
    assert repr(IndexMap.identity(nn.Linear(2, 2))) == "<IndexMap: 0 of 2 tensors cut; 6 of 6 entries kept (100.0 %)>"
    assert repr(TensorMap.identity((2, 3))) == "TensorMap([2, 3] whole)"
