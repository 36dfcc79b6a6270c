import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import hfp
from hfp.costs.macs import MacCounter, latencies, macs, macs_per_weight, parameters
from hfp.layers.calling import unfused
from hfp.models import create_model


def test_macs_of_known_layers():
    assert macs(nn.Linear(7, 5), torch.zeros(3, 7)) == 3 * 7 * 5
    assert macs(nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.zeros(2, 4, 5, 5)) == 2 * 6 * 25 * 2 * 9


def test_resnet32_is_the_papers_466_thousand_parameters():
    model = create_model("resnet32")
    assert round(parameters(model) / 1e3) == 467
    assert round(128 * macs(model, torch.zeros(1, 3, 32, 32)) / 1e9, 1) == 8.8


def test_counting_leaves_the_model_as_it_was():
    model = create_model("resnet8", in_channels=1)
    model.blocks.eval()
    modes = [module.training for module in model.modules()]
    statistics = model.stem[1].running_mean.clone()
    macs(model, torch.ones(2, 1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.stem[1].running_mean, statistics)


class _Always(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.5, training=True)


class _Drawing(nn.Module):
    """A network that draws at random in evaluation mode too, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return self.layer(functional.dropout(x.flatten(1), 0.5, training=True))


def test_counting_and_timing_leave_buffers_and_the_random_state_as_they_were():
    model, example = _Drawing(), torch.zeros(1, 64)
    before = torch.get_rng_state()
    macs(model, example)
    macs_per_weight(model, example)
    latencies([model, model], example, repeats=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.calls == 0


def test_a_network_that_draws_at_random_scores_the_same_again_and_after_a_break(tmp_path):
    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), _Always(), nn.Linear(16, 10))

    experiment = hfp.Experiment(
        method="fjord", model=network, train_images=60, clients=2, rounds=3, head_start=1, diagnostics=True
    )
    before = torch.get_rng_state()
    whole, again = (hfp.simulate(experiment) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    hfp.simulate(dataclasses.replace(experiment, rounds=2), resume=tmp_path)
    resumed = hfp.simulate(experiment, resume=tmp_path)
    for run in (again, resumed):
        assert [record.accuracy for record in run.history] == [record.accuracy for record in whole.history]
        assert all(torch.equal(run.global_state[name], value) for name, value in whole.global_state.items())


def test_macs_per_weight_times_weights_are_all_macs():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2), nn.Conv2d(6, 6, 3, groups=3), nn.ConvTranspose2d(6, 4, 2, groups=2),
        nn.Flatten(2), nn.Linear(9, 5),
    )  # fmt: skip
    example = torch.zeros(1, 2, 9, 9)
    uses = macs_per_weight(model, example)
    assert uses == {"0.weight": 16, "1.weight": 4, "2.weight": 4, "4.weight": 4}
    weights = dict(model.named_parameters())
    assert sum(count * weights[name].numel() for name, count in uses.items()) == macs(model, example)


def test_uses_are_counted_where_inputs_are_keywords_and_a_layer_returns_more_than_its_product():
    class WithBias(nn.Linear):
        def forward(self, x):
            return super().forward(x), self.bias

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.last = nn.ConvTranspose1d(2, 4, 3), WithBias(4, 5)

        def forward(self, x):
            return self.last(self.wide(input=x).transpose(1, 2))[0]

    assert macs_per_weight(Network(), torch.zeros(2, 2, 6)) == {"wide.weight": 2 * 6, "last.weight": 2 * 8}


def test_a_layer_that_is_not_called_counts_one_use():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].spare = nn.Linear(3, 2)
    assert macs_per_weight(model, torch.zeros(1, 3)) == {"0.weight": 1, "0.spare.weight": 1}


def test_a_counter_counts_a_shape_once():
    count = MacCounter(torch.zeros(1, 4))
    assert count(nn.Linear(4, 3)) == 12
    assert count(nn.Linear(4, 2)) == 8
    assert count(nn.Linear(4, 3)) == 12


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(3, 4)

    def forward(self, x, y):
        return self.first(x) + self.second(y)


@pytest.mark.parametrize("wrap", [tuple, list, lambda pair: dict(zip("xy", pair, strict=True))])
def test_example_inputs_may_be_arguments_or_keywords(wrap):
    inputs = wrap((torch.zeros(5, 2), torch.zeros(5, 3)))
    assert macs(Sum(), inputs) == 5 * (2 * 4 + 3 * 4)
    assert all(seconds > 0 for seconds in latencies((Sum(), Sum()), inputs, repeats=1))


@pytest.mark.parametrize("name", ("resnet18", "mobilenetv3_small_050", "test_vit", "test_convnext"))
def test_counts_are_those_of_pytorchs_own_counter(name):
    timm = pytest.importorskip("timm")
    model, x = timm.create_model(name).eval(), torch.zeros(1, 3, 160, 160)
    with torch.no_grad(), unfused(model), FlopCounterMode(display=False) as counter:
        model(x)
    assert macs(model, x) == counter.get_total_flops() // 2


def test_products_that_are_added_to_something_count():
    class Added(nn.Module):
        def forward(self, x):
            return torch.baddbmm(x, x, x) + torch.addmm(x[0], x[0], x[0])

    assert macs(Added(), torch.zeros(2, 3, 3)) == (2 + 1) * 3 * 3 * 3


def test_products_with_a_vector_count():
    class Pooled(nn.Module):
        def forward(self, x):
            return x @ x[0, 0], torch.dot(x[0, 0], x[0, 1])

    assert macs(Pooled(), torch.zeros(2, 3, 4)) == 2 * 3 * 4 + 4


def test_bilinear_layers_count_every_pair_of_inputs():
    class Scored(nn.Bilinear):
        def forward(self, x):
            return super().forward(x[:, :4], x[:, 4:])

    assert macs(Scored(4, 5, 6), torch.zeros(3, 9)) == 3 * 4 * 5 * 6


def test_products_inside_inference_mode_are_counted():
    class Inferring(nn.Linear):
        def forward(self, x):
            with torch.inference_mode():
                return super().forward(x)

    assert macs(Inferring(7, 5), torch.zeros(3, 7)) == 3 * 7 * 5
