"""Sets a run up: data, its partition over clients, the full model and its coupled groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hfp.data import Dataset, load_dataset, partition
from hfp.data.dataset import Split
from hfp.data.rows import share_of
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.problem import Problem, dataset_of
from hfp.federation.ratios import RatioFinder
from hfp.layers.calling import modes_kept
from hfp.methods import Client, Method, MethodContext, State, create_method
from hfp.models import classifier_of, create_model
from hfp.reconstruct import Coupling, MapError
from hfp.seeds import derive
from hfp.training.local_step import LocalData, LocalTraining

FEWEST_IMAGES = 2  # a client with one image has no batch that batch-norm can train on


@dataclass(frozen=True)
class Federation:
    """Everything that stays the same over the rounds of one experiment."""

    experiment: Experiment
    method: Method
    dataset: Dataset
    shards: tuple[LocalData, ...]
    model: nn.Module
    context: MethodContext
    training: LocalTraining
    device: torch.device

    @property
    def initial(self) -> State:
        """The full model's state before the first round."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def set_up(experiment: Experiment) -> Federation:
    """Read the data, deal it out, make the model, trace its coupled groups; all from the experiment's seed.

    Raises:
        InputError: data, model or device can't be had, there are more clients than samples, or a ratio leaves a layer
            without channels.
    """
    dataset = load_dataset(
        experiment.dataset,
        experiment.data_root,
        limit=experiment.train_images,
        download=experiment.download,
        seed=experiment.seed,
        image_size=experiment.image_size,
    )
    shares = partition(
        dataset.train.labels,
        experiment.clients,
        experiment.partition,
        alpha=experiment.alpha,
        seed=derive(experiment.seed, "partition"),
        minimum=FEWEST_IMAGES,
    )
    shards = tuple(
        LocalData(share_of(dataset.train.images, share), dataset.train.labels[share], dataset.normalise)
        for share in shares
    )
    return _assemble(experiment, dataset, _model(experiment, dataset), shards, [len(share) for share in shares])


def set_up_own(experiment: Experiment, problem: Problem, samples: Sequence[int], here: int | None = None) -> Federation:
    """The same for a user's own data and model; the experiment's names of data set and model are not looked at.

    Args:
        experiment: how many clients, which method, and so on.
        problem: the user's functions.
        samples: how many samples each client has; 0 where that isn't known, on the clients.
        here: the client whose data is read, none on the server.

    Raises:
        InputError: the functions don't give what they should, a ratio leaves a layer without channels, or the server is
            to measure what needs the clients' data.
    """
    for name in ("diagnostics", "personal"):
        if getattr(experiment, name):
            raise InputError(f"{name} needs the clients' data on the server, which it hasn't when the data is your own")
    model, test = problem.model(experiment.seed), problem.test_data()
    dataset = dataset_of(test, _outputs(model, test))
    nothing = LocalData(dataset.train.images, dataset.train.labels, dataset.normalise)
    federation = _assemble(experiment, dataset, model, (nothing,) * experiment.clients, list(samples))
    return federation if here is None else with_data_of(federation, problem, here)


def with_data_of(federation: Federation, problem: Problem, client: int) -> Federation:
    """The federation where one client is at home: its data, and how many samples it has.

    Raises:
        InputError: the user's function doesn't give what it should.
    """
    own = problem.client_data(client, federation.experiment.clients)
    check_labels(own, len(federation.dataset.classes))
    shards, clients = list(federation.shards), list(federation.context.clients)
    shards[client] = LocalData(own.images, own.labels, federation.dataset.normalise)
    clients[client] = dataclasses.replace(clients[client], samples=len(own.labels))
    context = dataclasses.replace(federation.context, clients=tuple(clients))
    return dataclasses.replace(federation, shards=tuple(shards), context=context)


def _assemble(
    experiment: Experiment, dataset: Dataset, model: nn.Module, shards: tuple[LocalData, ...], samples: list[int]
) -> Federation:
    device = _device(experiment.device)
    method = create_method(experiment.method, **experiment.options)
    groups = coupled_groups(model, dataset.shape)
    clients = tuple(
        Client(index, *traits)
        for index, traits in enumerate(
            zip(samples, _ratios(experiment, model, groups, samples, dataset.shape), experiment.devices, strict=True)
        )
    )
    context = MethodContext(
        model=model,
        groups=groups,
        parameters=tuple(dict(model.named_parameters())),
        clients=clients,
        seed=experiment.seed,
        example=torch.zeros(1, *dataset.shape),
        classifier=_rows_of_classes(model, len(dataset.classes)),
    )
    method.check(context)
    return Federation(
        experiment=experiment,
        method=method,
        dataset=dataset,
        shards=shards,
        model=model,
        context=context,
        training=LocalTraining(
            experiment.epochs,
            experiment.batch_size,
            experiment.learning_rate,
            experiment.momentum,
            experiment.weight_decay,
            experiment.augment,
            measure_variance=experiment.diagnostics,
            amp=experiment.amp,
            channels_last=experiment.channels_last,
        ),
        device=device,
    )


def coupled_groups(model: nn.Module, shape: tuple[int, ...]) -> Coupling:
    """The coupled groups of a classifier for images of `shape` (channels, height, width), its outputs left alone.

    Raises:
        InputError: nothing of the model can be pruned, or it does not run on such images.
    """
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        groups = Coupling.trace(model, images, ignored_layers=[classifier_of(model)])
        return groups.verified(model, images)
    except MapError as error:
        raise InputError(f"the model can't be used in a federation: {error}") from error


def _ratios(
    experiment: Experiment, model: nn.Module, groups: Coupling, samples: list[int], shape: tuple[int, ...]
) -> tuple[float, ...]:
    if experiment.budget is None:
        return experiment.ratios
    finder = RatioFinder(model, groups, torch.zeros(1, *shape))
    return tuple(
        finder.find(experiment.budget, device, experiment.epochs * images, client)
        for client, (device, images) in enumerate(zip(experiment.devices, samples, strict=True))
    )


def _outputs(model: nn.Module, test: Split) -> int:
    """How many classes the model tells apart.

    Raises:
        InputError: the model does not run on the test data, or has fewer classes than the data.
    """
    with torch.no_grad(), modes_kept(model):
        try:
            scores = model.eval()(test.images[:2])
        except RuntimeError as error:
            raise InputError(
                f"the model does not run on the test data {list(test.images[:2].shape)}: {error}"
            ) from error
    if scores.dim() != 2:
        raise InputError(f"the model must return scores [samples, classes]; found {list(scores.shape)}")
    check_labels(test, scores.shape[1])
    return scores.shape[1]


def check_labels(split: Split, classes: int) -> None:
    """Refuse labels that the model has no score for.

    Raises:
        InputError: naming the label and the number of classes.
    """
    least, most = int(split.labels.min()), int(split.labels.max())
    if least < 0 or most >= classes:
        raise InputError(f"labels must be in [0, {classes}), the model's classes; found {least if least < 0 else most}")


def _rows_of_classes(model: nn.Module, classes: int) -> tuple[str, ...]:
    own = {id(parameter) for parameter in classifier_of(model).parameters() if parameter.shape[:1] == (classes,)}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in own)


def _model(experiment: Experiment, dataset: Dataset) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(experiment.seed, "weights"))
        return create_model(experiment.model, num_classes=len(dataset.classes), in_channels=dataset.shape[0])


def _device(name: str) -> torch.device:
    try:
        device = torch.zeros(1, device=torch.device(name)).device  # with the number of the GPU
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} can't be used here ({reason}); use cpu") from error
    return device
