"""Steps on tensors that stay in place end where plain steps do, to the last bit."""

import dataclasses
import itertools

import pytest
import torch
from cases import by_default
from torch import nn

from hfp import Experiment
from hfp.federation.client_runner import Clients
from hfp.federation.fleet import InProcess
from hfp.federation.rounds import Course
from hfp.federation.setup import set_up
from hfp.methods import methods
from hfp.reconstruct import IndexMap
from hfp.training.local_step import LocalData, LocalTraining, Objective, train
from hfp.training.shells import Replay, Shells
from hfp.training.static_step import StaticStep

CPU = torch.device("cpu")
SMALL = Experiment(
    train_images=54,
    clients=3,
    rounds=2,
    head_start=1.0,
    epochs=2,
    rank=2,
    batch_size=8,
    evaluate=9,
    augment=True,
    weight_decay=1e-3,
)
OPTIONS = {"prunefl": {"every": 2, "passes": 5, "limit": 2}, "fedavgm": {"calibration": 0.1}}
STEP_BY_STEP = {"fjord"}


class Counted(Replay):
    """Also keeps the steps that it gave."""

    def __init__(self):
        super().__init__(CPU)
        self.steps = set()

    def step(self, *args):
        step = super().step(*args)
        self.steps |= {step} - {None}
        return step


def states_of(experiment, replay):
    federation = set_up(experiment)
    fleet = InProcess(federation)
    fleet._clients = Clients(federation, replay)
    course = Course(federation, fleet)
    return [course.advance() for _ in range(experiment.rounds)]


@pytest.mark.parametrize(
    ("method", "momentum"),
    by_default(
        ["ca-hfp", "fedavg", "prunefl"],
        [(method.name, 0.9) for method in methods() if method.name not in STEP_BY_STEP]
        + [("fedavg", 0.0), ("prunefl", 0.0)],
    ),
)
def test_a_run_on_static_steps_is_the_plain_run_to_the_last_bit(method, momentum):
    experiment = dataclasses.replace(SMALL, method=method, options=OPTIONS.get(method, {}), momentum=momentum)
    replay = Counted()
    plain, static = states_of(experiment, None), states_of(experiment, replay)
    assert sum(step.replays for step in replay.steps) >= 10
    for one, other in zip(plain, static, strict=True):
        assert [client.loss for client in one.record.clients] == [client.loss for client in other.record.clients]
        for name, tensor in one.state.weights.items():
            assert torch.equal(tensor, other.state.weights[name]), name


@pytest.mark.parametrize("method", ["fedavg", "heterofl", "prunefl"])
def test_a_new_rate_needs_no_new_step_and_ends_where_plain_steps_do(method):
    """HeteroFL also clips."""
    experiment = dataclasses.replace(
        SMALL, method=method, options=OPTIONS.get(method, {}), rounds=3, learning_rate_schedule="cosine"
    )
    replay, fixed = Counted(), Counted()
    plain, static = states_of(experiment, None), states_of(experiment, replay)
    states_of(dataclasses.replace(experiment, learning_rate_schedule="constant"), fixed)
    assert len(replay.steps) == len(fixed.steps)
    for one, other in zip(plain, static, strict=True):
        for name, tensor in one.state.weights.items():
            assert torch.equal(tensor, other.state.weights[name]), name


def test_fjord_runs_step_by_step_and_says_so_once():
    experiment = dataclasses.replace(SMALL, method="fjord", rounds=1, train_images=30)
    replay = Counted()
    with pytest.warns(UserWarning, match="not replayed .*: Nested does not say") as said:
        states_of(experiment, replay)
    assert len(said) == 1
    assert not replay.steps


class Noted(Objective):
    """Adds up gradients in a tensor, and weighs the loss by another."""

    def __init__(self, weight):
        self.tensors = {"weight": torch.tensor(weight), "sum": torch.zeros(3, 4)}

    def constants(self):
        return ()

    def loss(self, model, inputs, labels):
        return self.tensors["weight"] * super().loss(model, inputs, labels)

    def gradients(self, model):
        self.tensors["sum"] += model[0].weight.grad


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def data_of(seed, samples=21):
    random = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(samples, 4, generator=random), torch.randint(2, (samples,), generator=random)
    return LocalData(images, labels, torch.neg)


TRAINING = LocalTraining(epochs=2, batch_size=5, learning_rate=0.1, momentum=0.9, weight_decay=0.0)


def fitted(lease, parent, seed, objective):
    model = lease.build(IndexMap.identity(parent), parent.state_dict())
    data, random = data_of(seed), torch.Generator().manual_seed(seed)
    schedule = [chosen for _ in range(2) for chosen in torch.randperm(21, generator=random).split(5)[:-1]]
    schedule.insert(2, torch.tensor([0, 3]))
    lease.train(model, data, TRAINING, random, objective, schedule)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_objectives_keep_their_own_tensors_and_what_they_summed():
    parent, replay = network(), Counted()
    static, plain = Shells(parent, CPU, replay=replay), Shells(parent, CPU)
    for seed, weight in ((1, 0.5), (2, 2.0)):
        ours, theirs = Noted(weight), Noted(weight)
        with static.lent() as lease:
            found = fitted(lease, parent, seed, ours)
        with plain.lent() as lease:
            expected = fitted(lease, parent, seed, theirs)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
        assert torch.equal(ours.tensors["sum"], theirs.tensors["sum"])
        assert float(ours.tensors["weight"]) == weight
    (step,) = replay.steps
    assert step.replays == 16


def test_a_model_that_draws_random_numbers_is_not_replayed_and_draws_the_same():
    parent = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    found = []
    for replay in (Counted(), None):
        with Shells(parent, CPU, replay=replay).lent() as lease:
            torch.manual_seed(7)
            if replay is None:
                found.append(fitted(lease, parent, 1, Objective()))
            else:
                with pytest.warns(UserWarning, match="a step of Sequential is not replayed .*: it draws random"):
                    found.append(fitted(lease, parent, 1, Objective()))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])


def test_a_step_is_kept_for_its_shape_and_given_up_when_the_model_moved():
    parent, replay = network(), Counted()
    shells = Shells(parent, CPU, replay=replay)
    for _ in range(2):
        with shells.lent() as lease:
            fitted(lease, parent, 1, Objective())
    assert len(replay.steps) == 1
    with shells.lent() as lease:
        lease.build(IndexMap.identity(parent), parent.state_dict()).double().float()
    with shells.lent() as lease:
        fitted(lease, parent, 1, Objective())
    assert len(replay.steps) == 2


@pytest.mark.parametrize("spoiler", ["hooks", "variance", "objective"])
def test_what_cannot_be_replayed_runs_step_by_step_and_says_why(spoiler):
    class Silent(Objective):
        pass

    parent, replay = network(), Counted()
    training = dataclasses.replace(TRAINING, measure_variance=spoiler == "variance")
    objective = Silent() if spoiler == "objective" else Objective()
    data, schedule = data_of(1), [torch.arange(5), torch.arange(5)]
    with Shells(parent, CPU, replay=replay).lent() as lease:
        model = lease.build(IndexMap.identity(parent), parent.state_dict())
        if spoiler == "hooks":
            model[0].register_forward_hook(lambda _module, _inputs, output: 2 * output)
        reasons = {"hooks": "hooks", "variance": "variance", "objective": "Silent does not say"}
        with pytest.warns(UserWarning, match=reasons[spoiler]) as said:
            for _ in range(2):
                lease.train(model, data, training, torch.Generator(), objective, schedule)
    assert len(said) == 1
    assert not replay.steps


def test_random_numbers_are_drawn_in_the_order_of_the_steps():
    """Drawing all of an epoch's beforehand must not change which image is moved how."""
    seen = []

    class Looking(Objective):
        def loss(self, model, inputs, labels):
            seen.append(inputs.clone())
            return super().loss(model, inputs, labels)

    from hfp.data import augment

    images = torch.rand(11, 1, 6, 6)
    data = LocalData(images, torch.zeros(11, dtype=torch.long), lambda batch: batch)
    training = dataclasses.replace(TRAINING, augment=True, batch_size=4)
    train(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), data, training, torch.Generator().manual_seed(5), Looking())
    random = torch.Generator().manual_seed(5)
    orders = [torch.randperm(11, generator=random).split(4) for _ in range(2)]
    for chosen, inputs in zip(itertools.chain(*orders), seen, strict=True):
        assert torch.equal(inputs, augment(images[chosen], random))


def test_a_failure_on_the_processor_is_not_hidden():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            raise RuntimeError("no such thing")

    step = StaticStep(Broken(), torch.neg, TRAINING, Objective(), size=5)
    with pytest.raises(RuntimeError, match="no such thing"):
        train(step.model, data_of(1), TRAINING, torch.Generator(), step=step)
