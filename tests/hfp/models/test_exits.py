"""Early exits on a classifier: where they stand, what each needs, and that nothing behind the last one is computed."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hfp.costs.macs import MacCounter, macs
from hfp.costs.memory import PeakBytesCounter
from hfp.errors import InputError
from hfp.models import create_model
from hfp.models.exits import only_what_runs, with_exits
from hfp.reconstruct import MapError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return with_exits(create_model("resnet8"), torch.zeros(1, 3, 32, 32)).eval()


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet20", ("blocks.2", "blocks.5")),
        ("vgg16", ("features.8", "features.15", "features.22")),
        ("resnet18", ("layer1", "layer2", "layer3")),
        ("test_vit", ()),
    ],
)
def test_an_exit_stands_before_each_reduction_and_else_at_even_distances(name, places):
    size = 160 if name == "test_vit" else 32
    made = with_exits(create_model(name), torch.zeros(1, 3, size, size))
    if places:
        assert made.places == places
    else:
        assert 2 <= made.exits <= 4
    assert made.train()(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_no_exit_reads_a_weight_that_is_computed():
    model = create_model("resnet8")
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d):
            weight_norm(module)
    assert with_exits(model, torch.zeros(1, 3, 32, 32)).places == ("blocks.0", "blocks.1")


def test_logits_are_the_mean_of_all_exits_and_the_last_are_the_networks_own(network):
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        each = network.logits(images)
        torch.testing.assert_close(network(images), (each[0] + each[1] + each[2]) / 3)
        assert torch.equal(each[-1], network.network(images))


def test_nothing_behind_the_last_exit_is_computed(network):
    image = torch.zeros(1, 3, 32, 32)
    try:
        costs = []
        for network.depth in (1, 2, 3):
            assert len(network.logits(image)) == network.depth
            costs.append(macs(network, image))
    finally:
        network.depth = 3
    assert costs[0] < costs[1] < costs[2]
    shallow, middle = network.heads
    heads = [macs(shallow, torch.zeros(1, 16, 32, 32)), macs(middle, torch.zeros(1, 32, 16, 16))]
    assert costs[2] == macs(network.network, image) + sum(heads)


def test_a_tensor_is_needed_from_the_first_exit_that_its_gradient_comes_from(network):
    names = dict(network.named_parameters())
    for depth in (1, 2, 3):
        network.zero_grad()
        network.depth = depth
        torch.stack(network.logits(torch.rand(2, 3, 32, 32))).sum().backward()
        reached = {name for name, parameter in names.items() if parameter.grad is not None}
        assert reached == {name for name in names if network.needs[name] <= depth}
    assert network.needs["network.blocks.1.first.1.running_mean"] == 2
    assert network.needs.keys() == network.state_dict().keys()


def test_zeros_in_place_of_later_exits_change_no_prediction(network):
    images = torch.rand(20, 3, 32, 32)
    with torch.no_grad():
        network.depth = 2
        shallow = network(images)
        network.depth = 3
        kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(
            {name: torch.zeros_like(tensor) if network.needs[name] > 2 else tensor for name, tensor in kept.items()}
        )
        torch.testing.assert_close(network(images), shallow * 2 / 3)
        network.load_state_dict(kept)


def test_a_model_that_has_exits_is_left_alone_and_one_that_can_have_none_is_refused(network):
    assert with_exits(network, torch.zeros(1, 3, 32, 32)) is network
    with pytest.raises(InputError, match="Linear can't be given early exits"):
        with_exits(nn.Linear(4, 2), torch.zeros(1, 4))


def test_counts_that_are_kept_are_of_one_depth(network):
    count, count_peak = MacCounter(torch.zeros(1, 3, 32, 32)), PeakBytesCounter(torch.zeros(1, 3, 32, 32))
    try:
        found = []
        for network.depth in (1, 3):
            found.append((count(network), count_peak(network, 4)))
            assert found[-1][0] == macs(network, torch.zeros(1, 3, 32, 32))
    finally:
        network.depth = 3
    assert found[0][0] < found[1][0]
    assert found[0][1] < found[1][1]


def plain(*stages):
    return nn.Sequential(nn.Sequential(*stages), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def assert_trains(made):
    made.train()(torch.rand(2, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters() if parameter.requires_grad)


def test_no_exit_reads_what_is_overwritten_later():
    rectified = (nn.ReLU(inplace=True) for _ in range(3))
    network = plain(conv(3, 8), next(rectified), conv(8, 8), next(rectified), conv(8, 8), next(rectified))
    made = with_exits(network, torch.zeros(2, 3, 16, 16))
    assert made.places == ("0.1", "0.3", "0.5")
    assert_trains(made)


def test_no_exit_reads_a_module_that_runs_several_times():
    rectify = nn.ReLU()
    made = with_exits(plain(conv(3, 8), rectify, conv(8, 8), rectify, conv(8, 8), rectify), torch.zeros(2, 3, 16, 16))
    assert made.places == ("0.0", "0.2", "0.4")
    assert_trains(made)


def test_no_exit_reads_what_is_computed_in_inference_mode():
    class Fixed(nn.Conv2d):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    class Copy(nn.Module):
        def forward(self, x):
            return x.clone()

    made = with_exits(plain(Fixed(3, 8, 3).requires_grad_(False), Copy(), conv(8, 8)), torch.zeros(2, 3, 16, 16))
    assert "0.0" not in made.places
    assert_trains(made)


def test_the_last_part_of_the_network_may_be_frozen():
    network = create_model("resnet8")
    for part in (network.blocks[2], network.classifier):
        part.requires_grad_(False)
    made = with_exits(network, torch.zeros(2, 3, 16, 16))
    assert made.exits == 3
    assert_trains(made)


@pytest.mark.parametrize("depth", [0, -1, 99, 1.5, None, True])
def test_a_number_of_exits_that_no_file_can_have_is_refused(depth):
    made = with_exits(create_model("resnet8"), torch.zeros(1, 3, 32, 32))
    made.depth = depth
    with pytest.raises(MapError, match=f"runs 1 to {made.exits} of them, and the file has {depth!r}"):
        only_what_runs(made)
