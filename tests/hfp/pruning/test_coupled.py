"""What is coupled before a model is pruned: as values, a table and a page."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from io import StringIO

import pytest
import timm
import torch
from rich.console import Console
from torch.nn.utils.parametrizations import spectral_norm

from hfp.errors import InputError
from hfp.pruning.coupled import GroupReport, coupled_report
from hfp.pruning.coupled_page import LETTER, coupled_page, lanes_of
from hfp.reconstruct.coupling.members import Member

VOID = {"meta", "br"}


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    return coupled_report(timm.create_model("test_resnet").eval(), torch.randn(2, 3, 32, 32), "test_resnet")


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32).eval()
    return coupled_report(model, torch.randn(2, 3, 32, 32), "<test_vit>")


class Balanced(HTMLParser):
    """Raises where tags are not closed in order, and keeps what is outside of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_layer_is_in_a_group_or_left_alone_with_a_reason(report):
    writers = {name for group in report.groups for name in group.counted("writes")}
    for layer in report.layers:
        if layer.macs is not None:
            assert (layer.name in writers) != (layer.reason is not None), layer
    assert report.left_alone == {"it is an output of the model": ["fc"]}


def test_macs_of_the_layers_add_up_to_those_of_the_model(report):
    assert sum(layer.macs or 0 for layer in report.layers) == report.macs


def test_the_model_stays_as_it_was():
    model = torch.nn.Sequential(spectral_norm(torch.nn.Linear(4, 8)), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert [layer.macs for layer in coupled_report(model, torch.randn(2, 4), "mine").layers] == [64, 32]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("part", [None, "1"])
def test_hooks_of_the_model_are_not_called(part):
    called = []
    body = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), body, torch.nn.Linear(8, 2))
    for module in model.modules():
        module.register_forward_pre_hook(lambda *given: called.append(given))
        module.register_forward_hook(lambda *given: called.append(given))
    report = coupled_report(model, torch.randn(2, 4), "mine", part)
    assert report.macs == (256 if part else 352) and report.groups
    assert called == []
    (note,) = report.notes
    assert re.fullmatch("hooks of the model, .*, and . more were not called: if one changes what the model .*", note)
    stream = StringIO()
    Console(file=stream, width=1000).print(report.shown())
    assert note in stream.getvalue() and note in coupled_page(report)


class Merging(torch.nn.Linear):
    """Adds something to its weight in evaluation mode, and takes it off again in training mode."""

    merged = False

    def train(self, mode=True):
        if self.merged == mode:
            self.weight.data.add_(-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)


def test_a_model_that_writes_to_its_weights_stays_as_it_was():
    model = torch.nn.Sequential(Merging(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    before = model[0].weight.detach().clone()
    coupled_report(model, torch.randn(2, 4), "mine")
    assert torch.equal(model[0].weight, before)


def test_inputs_that_do_not_fit_are_one_line():
    with pytest.raises(InputError, match="the model does not run on the example inputs"):
        coupled_report(torch.nn.Linear(4, 8), torch.randn(2, 5), "mine")


def test_several_indices_of_a_layer_that_go_with_a_channel_are_counted():
    members = (Member("qkv", "writes", 96, 96), Member("proj", "reads", 32, 32), Member("norm", "carries", 2, 64))
    group = GroupReport("qkv", 2, members, (), ())
    assert group.counted("writes") == ["qkv (48 each)"]
    assert group.counted("carries") == ["norm"]


def test_groups_in_one_lane_do_not_overlap(transformer, report):
    for found in (transformer, report):
        lanes = lanes_of(found)
        assert len(lanes) == len(found.groups)
        for lane in lanes:
            for other in lanes:
                if lane is not other and lane.x == other.x:
                    assert lane.last < other.first or other.last < lane.first


def test_the_page_is_whole_and_fetches_nothing(transformer):
    page = coupled_page(transformer)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"<script|<link|<img|url\(|@import|https?:", page)
    assert "prefers-color-scheme: dark" in page
    assert "&lt;test_vit&gt;" in page
    assert "<test_vit>" not in page
    for layer in transformer.layers:
        assert layer.name in page
    assert page.count('<g class="group') == len(transformer.groups)


def test_bars_begin_where_the_longest_text_has_ended(report):
    long = [dataclasses.replace(layer, name=f"{'part.' * 20}{layer.name}") for layer in report.layers]
    for layers in (report.layers, long):
        page = coupled_page(dataclasses.replace(report, layers=layers))
        (begin,) = {int(x) for x in re.findall(r'<rect class="bar" x="(\d+)"', page)}
        (width,) = {int(found) for found in re.findall(r'<svg width="(\d+)"', page)}
        ends = [
            int(x) + LETTER * len(re.sub("<[^>]*>", "", text))
            for x, text in re.findall(r'<text x="(\d+)" y="\d+">(.*)</text>', page)
        ]
        assert len(ends) == len(layers)
        assert max(ends) < begin < width


def test_the_table_has_every_group_and_says_what_is_left_alone(report):
    console = Console(width=200, file=StringIO())
    console.print(report.shown())
    text = console.file.getvalue()
    for group in report.groups:
        assert f" {group.name} " in text
    assert "left alone: fc: it is an output of the model" in text
