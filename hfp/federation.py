"""Sets a run up: data, its partition over clients, the full model and its coupled groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hfp.client import LocalData, LocalTraining
from hfp.data import Dataset, load_dataset, partition
from hfp.errors import InputError
from hfp.experiment import Experiment
from hfp.limits import RatioFinder
from hfp.methods import Client, Method, Setting, State, create_method
from hfp.models import classifier_of, create_model
from hfp.reconstruct import Coupling, MapError
from hfp.seeds import derive

FEWEST_IMAGES = 2  # a client with one image has no batch that batch-norm can train on


@dataclass(frozen=True)
class Federation:
    """Everything that stays the same over the rounds of one experiment."""

    experiment: Experiment
    method: Method
    dataset: Dataset
    shards: tuple[LocalData, ...]
    model: nn.Module
    setting: Setting
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
    device = _device(experiment.device)
    method = create_method(experiment.method, **experiment.options)
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
    model = _model(experiment, dataset)
    groups = coupled_groups(model, dataset.shape)
    samples = [len(share) for share in shares]
    clients = tuple(
        Client(index, *traits)
        for index, traits in enumerate(
            zip(samples, _ratios(experiment, model, groups, samples, dataset.shape), experiment.devices, strict=True)
        )
    )
    setting = Setting(
        model=model,
        groups=groups,
        parameters=tuple(dict(model.named_parameters())),
        clients=clients,
        seed=experiment.seed,
        example=torch.zeros(1, *dataset.shape),
        classifier=_rows_of_classes(model, len(dataset.classes)),
    )
    method.check(setting)
    return Federation(
        experiment=experiment,
        method=method,
        dataset=dataset,
        shards=tuple(
            LocalData(dataset.train.images[share], dataset.train.labels[share], dataset.normalise) for share in shares
        ),
        model=model,
        setting=setting,
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


def _rows_of_classes(model: nn.Module, classes: int) -> tuple[str, ...]:
    own = {id(parameter) for parameter in classifier_of(model).parameters() if parameter.shape[:1] == (classes,)}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in own)


def _model(experiment: Experiment, dataset: Dataset) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(experiment.seed, "weights"))
        return create_model(experiment.model, num_classes=len(dataset.classes), in_channels=dataset.shape[0])


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} can't be used here ({reason}); use cpu") from error
    return device
