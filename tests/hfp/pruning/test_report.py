"""Reports: they fit a screen, start with the summary, and hold in a notebook."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console
from torch import nn

import hfp
from hfp.pruning.layers_report import LayerReport, unrounded
from hfp.pruning.tables import cost_lines, folded

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def result() -> hfp.PruneResult:
    import timm

    torch.manual_seed(0)
    return hfp.prune(timm.create_model("resnet18").eval(), torch.randn(1, 3, 32, 32), hfp.Budget(macs=0.5))


def printed(shown: object, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False).print(shown)
    return stream.getvalue().splitlines()


def test_the_summary_comes_first_and_all_fits_80_columns(result):
    lines = printed(result.report.shown())
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Pruned to macs=0.5 by l2: 20 of 21 layers lost outputs")
    assert [line.split()[1] for line in lines if line.startswith("total")] == ["macs", "params", "bytes"]
    assert lines.index(next(line for line in lines if "total macs" in line)) < lines.index(
        next(line for line in lines if "conv1" in line)
    )
    assert not any("…" in line for line in lines)


def test_batch_norm_is_in_the_row_of_its_layer(result):
    rows = folded(result.report.layers)
    assert len(rows) == 21
    assert rows[0].name == "conv1 + bn1"
    parts = result.report.layers[:2]
    assert rows[0].parameters == tuple(sum(layer.parameters[place] for layer in parts) for place in (0, 1))
    assert "layer2.0.downsample.0 + norm" in {row.name for row in rows}


def test_a_norm_of_other_channels_has_its_own_row():
    conv = LayerReport("a", "Conv2d", 8, 4, (3, 3), (24, 12), None)
    norm = LayerReport("b", "BatchNorm2d", 16, 8, None, (32, 16), None)
    assert folded([conv, norm]) == [conv, norm]


def test_a_result_is_at_most_a_screen(result):
    text = repr(result)
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 160
    assert text.startswith("PruneResult: a ResNet\nPruned to macs=0.5")
    assert re.search(r"macs .* → .* left, .* points below the limit", text)


def test_a_result_is_a_table_in_a_notebook(result):
    page = result._repr_html_()
    assert page.count("<table>") == 2
    assert "<td>conv1 + bn1</td>" in page
    assert page.index("<td>macs</td>") < page.index("<td>conv1 + bn1</td>")


def test_names_are_escaped_in_a_notebook(result):
    from hfp.pruning.tables import html

    page = html("<b>", [LayerReport("<i>", "Conv2d", 8, 4, (3, 3), (24, 12), None)], {"macs": (2, 1)}, ["<s>"])
    assert not re.search("<[bis]>", page)


def test_the_distance_to_every_limit_is_reported():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    report = hfp.prune(model, torch.zeros(1, 4), hfp.Budget(macs=0.5, params=0.9)).report
    assert set(report.distance) == {"macs", "params"}
    for name, limit in (("macs", 0.5), ("params", 0.9)):
        before, after = report.costs[name]
        assert report.distance[name] == pytest.approx(limit - after / before)
    assert report.met
    assert report.as_dict()["met"] is True
    assert any("points below the limit" in line for line in cost_lines(report.costs, report.distance))


def test_a_limit_that_is_not_met_is_loud():
    (line,) = cost_lines({"latency": (1.0, 0.6)}, {"latency": -0.1})
    assert line == "latency  1e+03 ms → 600 ms, 60.0% left, 10 points ABOVE the limit"


class Halves(nn.Module):
    """Channels of `wide` are two for one of `inner`."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.inner = nn.Conv2d(3, 64, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.last, self.head = nn.Conv2d(96, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.wide(x).relu().chunk(2, 1))
        parts.append(parts[-1] + self.inner(parts[-1]))
        return self.head(self.last(torch.cat(parts, 1)).relu())


@pytest.mark.parametrize("ratio", [0.3, 0.4, 0.5, 0.6])
def test_round_to_holds_for_every_layer_that_a_group_reaches(ratio):
    torch.manual_seed(0)
    report = hfp.prune(Halves(), IMAGES, hfp.Budget(ratio=ratio), round_to=8).report
    assert all(layer.after % 8 == 0 for layer in report.layers if layer.after < layer.before)
    assert report.notes == ()


class Recurrent(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.steps = nn.LSTM(8, 64, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(2 * (options.get("proj_size") or 64), 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.steps(x)[0].mean(1))


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"proj_size": 32}])
@pytest.mark.parametrize("share", [0.5, 0.7])
def test_round_to_holds_for_the_units_of_an_lstm_and_not_for_its_gates(share, options):
    result = hfp.prune(Recurrent(**options), torch.randn(2, 5, 8), hfp.Budget(macs=share), round_to=8)
    assert (result.model.steps.hidden_size % 8, result.model.steps.proj_size % 8) == (0, 0)
    assert result.report.notes == ()


def test_layers_that_can_t_be_rounded_are_named():
    layers = [
        LayerReport("a", "Conv2d", 20, 12, (3, 3), (60, 36), None),
        LayerReport("b", "Conv2d", 20, 16, (3, 3), (60, 48), None),
        LayerReport("c", "Conv2d", 20, 20, (3, 3), (60, 60), "it is an output of the model"),
    ]
    (line,) = unrounded(layers, 8)
    assert line.startswith("round_to=8 does not hold for a (12 of 20): ")
    assert list(unrounded(layers, 4)) == list(unrounded(layers, None)) == []


def test_a_layer_that_the_rules_leave_no_choice_says_so():
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 2))
    report = hfp.prune(model, torch.zeros(1, 4), hfp.Budget(ratio=0.5), round_to=16).report
    assert report.layers[0].reason == "no part of its channels can go with round_to=16 and min_channels=1"


class Encoder(nn.Module):
    """PyTorch's own transformer: the width goes in steps of an eighth, with the heads; the inner layers go finely."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(64, 8, 256, batch_first=True)
        self.enter, self.blocks, self.head = nn.Linear(16, 64), nn.TransformerEncoder(layer, 2), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.enter(x)).mean(1))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_transformer_encoder_comes_to_half_of_its_macs():
    result = hfp.prune(Encoder().eval(), torch.randn(2, 12, 16), hfp.Budget(macs=0.5, tolerance=0.02))
    before, after = result.report.costs["macs"]
    assert 0.49 <= after / before <= 0.5
