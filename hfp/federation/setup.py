"""Sets a run up: its data, their partition over clients, the full model and its coupled groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hfp.costs.macs import macs, parameters
from hfp.costs.memory import PeakBytesCounter
from hfp.data import Dataset, load_dataset, partition
from hfp.data.dataset import Split, check_dataset, check_labels
from hfp.data.ownership import checked_parts, parts_in_file, parts_of_owners
from hfp.data.partition import FEWEST, OWN
from hfp.data.rows import share_of
from hfp.devices import working_device
from hfp.errors import InputError
from hfp.federation.experiment import GIVEN, Experiment
from hfp.federation.problem import Problem, dataset_of
from hfp.federation.ratios import RatioFinder
from hfp.layers.calling import modes_kept, random_state_kept
from hfp.methods import Client, Method, MethodContext, State, create_method
from hfp.models import classifier_of, models
from hfp.models.names import is_factory
from hfp.models.source import RANDOM, classifier
from hfp.reconstruct import Coupling, MapError
from hfp.seeds import derive, making_seeded
from hfp.training.batch_norm import has_statistics
from hfp.training.local_step import LocalData, LocalTraining


@dataclass(frozen=True)
class Federation:
    """Everything that stays the same over the rounds of one experiment.

    Args:
        experiment: what is run.
        method: the federated method, with its options.
        dataset: the data set; clients have parts of its training split.
        shards: each client's data.
        model: the full model with its initial weights.
        context: what the method sees.
        training: how clients train, but for the epochs, which depend on the round.
        device: where the run computes.
        origin: a phrase that says where the initial weights are from.
    """

    experiment: Experiment
    method: Method
    dataset: Dataset
    shards: tuple[LocalData, ...]
    model: nn.Module
    context: MethodContext
    training: LocalTraining
    device: torch.device
    origin: str

    def client_in(self, round: int, client: Client) -> Client:
        """A client with the ratio that it has in a round, counted from 0."""
        ratio = self.experiment.ratio_in(round, client.ratio)
        return client if ratio == client.ratio else dataclasses.replace(client, ratio=ratio)

    def training_in(self, round: int) -> LocalTraining:
        """How clients train in a round, counted from 0."""
        experiment = self.experiment
        return dataclasses.replace(
            self.training, epochs=experiment.epochs_in(round), rate_factor=experiment.rate_factor(round)
        )

    @property
    def initial(self) -> State:
        """The full model's state before the first round."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    @cached_property
    def full(self) -> FullCosts:
        """What the full model costs."""
        model, example = self.model, self.context.example
        largest = min(self.experiment.batch_size, max(client.samples for client in self.context.clients))
        peak_bytes = PeakBytesCounter(example)(model, largest)
        return FullCosts(parameters(model), macs(model, example), peak_bytes)


@dataclass(frozen=True)
class FullCosts:
    """What the full model costs: parameters, the multiply-accumulates of one image, and the largest client's bytes."""

    parameters: int
    forward_macs: int
    peak_bytes: int


def set_up(experiment: Experiment, *, copies: bool = True) -> Federation:
    """Read the data, deal it out to clients, make the model and find its coupled groups, from the experiment's seed.

    Args:
        experiment: what is run.
        copies: clients have copies of their images where these are small. Otherwise all look at the data set's.

    Raises:
        InputError: data, model or device are not available, nothing of the model can be trained, there are more clients
            than samples, a ratio leaves a layer without channels, or the experiment is from a file and its model or
            data was given in Python.
    """
    _check_nothing_missing(experiment)
    dataset, shares = dealt_out(experiment, _dataset(experiment))
    shards = tuple(
        LocalData(share_of(dataset.train.images, share, copies), dataset.train.labels[share], dataset.normalise)
        for share in shares
    )
    model, origin = _model(experiment, dataset)
    return _assemble(experiment, dataset, model, origin, shards, [len(share) for share in shares])


def dealt_out(experiment: Experiment, dataset: Dataset) -> tuple[Dataset, list[np.ndarray]]:
    """Give every client its training samples; returns the data set with notes on that, and each client's indices.

    Raises:
        InputError: there are too few samples, or what says who has what does not fit the data set.
    """
    if experiment.clients_file is not None:
        shares, notes = parts_in_file(Path(experiment.clients_file), dataset, experiment.clients)
        return _with_notes(dataset, shares, notes), shares
    if experiment.partition == OWN:
        return dataset, parts_of_owners(dataset.owners, experiment.clients, dataset.name)
    if not isinstance(experiment.partition, str):
        shares = checked_parts(experiment.partition, len(dataset.train), "partition")
        return _with_notes(dataset, shares, ()), shares
    notes = ()
    if dataset.owners is not None:
        notes = (f"it belongs to {int(dataset.owners.max()) + 1} clients, and is dealt out anew without partition own",)
    shares = partition(
        dataset.train.labels,
        experiment.clients,
        experiment.partition,
        alpha=experiment.alpha,
        seed=derive(experiment.seed, "partition"),
        minimum=FEWEST,
    )
    return _with_notes(dataset, shares, notes), shares


def _with_notes(dataset: Dataset, shares: Sequence[np.ndarray], notes: tuple[str, ...]) -> Dataset:
    left = len(dataset.train) - sum(map(len, shares))
    if left:
        notes += (f"{left:,} training samples belong to no client and are not used",)
    return dataclasses.replace(dataset, notes=(*dataset.notes, *notes)) if notes else dataset


def set_up_own(experiment: Experiment, problem: Problem, samples: Sequence[int]) -> Federation:
    """Set a run up for a user's own data and model, in place of those that the experiment names; no client has data.

    Args:
        experiment: the clients, the method and all other settings.
        problem: the user's functions.
        samples: how many samples each client has; 0 where that isn't known, which is on the clients.

    Raises:
        InputError: the functions don't give what they should, a ratio leaves a layer without channels, or the server is
            to measure what needs the clients' data.
    """
    for name in ("diagnostics", "personal"):
        if getattr(experiment, name):
            raise InputError(f"{name} needs the clients' data on the server, which has none when the data is your own")
    for name in ("pretrained", "weights"):
        if getattr(experiment, name):
            raise InputError(f"{name} can't be used with a model of your own; load the weights in its model()")
    if experiment.clients_file is not None:
        raise InputError("clients_file can't be used with data of your own, which is on the clients already")
    model, test = problem.model(experiment.seed), problem.test_data()
    dataset = dataset_of(test, _outputs(model, test))
    nothing = LocalData(dataset.train.images, dataset.train.labels, dataset.normalise)
    shards = (nothing,) * experiment.clients
    return _assemble(experiment, dataset, model, "the weights of model()", shards, list(samples))


def with_data_of(federation: Federation, problem: Problem, client: int) -> Federation:
    """Return the federation with one client's own data in it, as it is where that client runs.

    Raises:
        InputError: the user's function doesn't return what it should.
    """
    own = problem.client_data(client, federation.experiment.clients)
    check_labels(f"data of client {client}", own.labels, len(federation.dataset.classes))
    if own.images.shape[1:] != federation.dataset.shape:
        raise InputError(
            f"data of client {client}: samples must have the test samples' shape {list(federation.dataset.shape)}; "
            f"found {list(own.images.shape[1:])}"
        )
    shards, clients = list(federation.shards), list(federation.context.clients)
    shards[client] = LocalData(own.images, own.labels, federation.dataset.normalise)
    clients[client] = dataclasses.replace(clients[client], samples=len(own.labels))
    context = dataclasses.replace(federation.context, clients=tuple(clients))
    return dataclasses.replace(federation, shards=tuple(shards), context=context)


def _assemble(
    experiment: Experiment,
    dataset: Dataset,
    model: nn.Module,
    origin: str,
    shards: tuple[LocalData, ...],
    samples: list[int],
) -> Federation:
    _check_images(experiment, dataset)
    _check_statistics(experiment, dataset, model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            f"no parameter of the given {type(model).__name__} requires gradients, so that nothing would be trained; "
            "call its requires_grad_()"
        )
    device = working_device(experiment.device)
    method = create_method(experiment.method, **experiment.options)
    example = torch.zeros(1, *dataset.shape)
    model = prepared(method, model, example, experiment.seed)
    groups = _groups(experiment, method, dataset, model, origin)
    context = MethodContext(
        model=model,
        groups=groups,
        parameters=tuple(dict(model.named_parameters())),
        clients=_clients(experiment, samples, _ratios(experiment, method, model, groups, samples, example)),
        seed=experiment.seed,
        example=example,
        classifier=_rows_of_classes(model),
        rounds=experiment.rounds,
    )
    method.check(context)
    if experiment.first_ratio is not None:
        if method.keeps_size:
            raise InputError(
                f"first_ratio must be left out with {method.name}, whose one mask for all clients has the same size in "
                f"every round; found {experiment.first_ratio}"
            )
        first = [dataclasses.replace(client, ratio=experiment.ratio_in(0, client.ratio)) for client in context.clients]
        method.check(dataclasses.replace(context, clients=tuple(first)))
    return Federation(
        experiment=experiment,
        method=method,
        dataset=dataset,
        shards=shards,
        model=model,
        context=context,
        training=_training(experiment),
        device=device,
        origin=origin,
    )


def prepared(method: Method, model: nn.Module, example: Tensor, seed: int) -> nn.Module:
    """Return the full model that a method makes of the one that was asked for; what it adds is drawn from the seed."""
    with making_seeded(seed, "prepared weights"):
        return method.prepare(model, example)


def _check_images(experiment: Experiment, dataset: Dataset) -> None:
    for name in ("augment", "channels_last"):
        if getattr(experiment, name) and len(dataset.shape) != 3:
            raise InputError(f"{name} is for images [channels, height, width]; found samples {list(dataset.shape)}")


def _check_statistics(experiment: Experiment, dataset: Dataset, model: nn.Module) -> None:
    if experiment.batch_norm == "batch" and len(dataset.test) < 2 and has_statistics(model):
        raise InputError(
            "batch_norm must be another policy than batch with one test sample, which has no statistics of its own; "
            "leave it out or use reestimate"
        )


def _clients(experiment: Experiment, samples: Sequence[int], ratios: Sequence[float]) -> tuple[Client, ...]:
    return tuple(
        Client(index=index, samples=count, ratio=ratio, device=device)
        for index, (count, ratio, device) in enumerate(zip(samples, ratios, experiment.devices, strict=True))
    )


def _training(experiment: Experiment) -> LocalTraining:
    return LocalTraining(
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
        learning_rate=experiment.learning_rate,
        momentum=experiment.momentum,
        weight_decay=experiment.weight_decay,
        augment=experiment.augment,
        measure_variance=experiment.diagnostics,
        amp=experiment.amp,
        channels_last=experiment.channels_last,
        clip_norm=experiment.clip_norm,
    )


def coupled_groups(model: nn.Module, shape: tuple[int, ...]) -> Coupling:
    """Find the coupled groups of a classifier for images of `shape` (channels, height, width); its outputs stay.

    Raises:
        InputError: nothing of the model can be pruned, or it does not run on such images.
    """
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    found = classifier_of(model)
    heads = list(found) if isinstance(found, nn.ModuleList) else [found]
    try:
        groups = Coupling.trace(model, images, ignored_layers=heads)
        return groups.verified(model, images)
    except MapError as error:
        raise InputError(f"the model can't be used in a federation: {error}") from error


def _groups(experiment: Experiment, method: Method, dataset: Dataset, model: nn.Module, origin: str) -> Coupling:
    """Find the groups of the model, which those who compare methods need not wait for at every run.

    What a name, a seed and a shape make is known for hfp's own networks with random weights alone.
    """
    if experiment.model in models() and origin == RANDOM and type(method).prepare is Method.prepare:
        return _groups_of_own(str(experiment.model), len(dataset.classes), dataset.shape, experiment.seed)
    return coupled_groups(model, dataset.shape)


@lru_cache(maxsize=8)
def _groups_of_own(name: str, classes: int, shape: tuple[int, ...], seed: int) -> Coupling:
    with making_seeded(seed, "weights"):
        model, _ = classifier(name, num_classes=classes, in_channels=shape[0])
    return coupled_groups(model, shape)


def _ratios(
    experiment: Experiment, method: Method, model: nn.Module, groups: Coupling, samples: list[int], example: Tensor
) -> tuple[float, ...]:
    devices = experiment.devices
    finder = RatioFinder(model, groups, example, experiment.batch_size, method)
    if experiment.budget is not None:
        return tuple(
            finder.find(experiment.budget, device, experiment.epochs * images, client)
            for client, (device, images) in enumerate(zip(devices, samples, strict=True))
        )
    return tuple(
        ratio if device.memory is None else finder.fitting(ratio, device, client)
        for client, (device, ratio) in enumerate(zip(devices, experiment.ratios, strict=True))
    )


def _outputs(model: nn.Module, test: Split) -> int:
    """Count the classes that the model tells apart.

    Raises:
        InputError: the model does not run on the test data, or has fewer classes than the data.
    """
    with torch.no_grad(), modes_kept(model), random_state_kept(seed=0):
        try:
            scores = model.eval()(test.images[:2])
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"the model does not run on the test data {list(test.images[:2].shape)}: {error}"
            ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"the model must return scores [samples, classes]; found {found}")
    check_labels("the model's outputs and the test data", test.labels, scores.shape[1])
    return scores.shape[1]


def _rows_of_classes(model: nn.Module) -> tuple[str, ...]:
    """Name the classifier's parameters with a row for each of its classes, of which the data may have fewer."""
    found = list(classifier_of(model).parameters())
    last = next((parameter for parameter in reversed(found) if parameter.dim() > 1), found[-1])  # not a scale after it
    own = {id(parameter) for parameter in found if parameter.shape[:1] == last.shape[:1]}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in own)


def _check_nothing_missing(experiment: Experiment) -> None:
    """Refuse a model or data set that a file only names, so that it has to be given again."""
    for what, value, again in (
        ("model", experiment.model, "or --model module:factory"),
        ("dataset", experiment.dataset, "or hfp.data.register_dataset"),
        ("partition", experiment.partition, "or clients_file"),
    ):
        if isinstance(value, str) and value.startswith(GIVEN):
            raise InputError(
                f"the {what} {value.removeprefix(GIVEN)} was given in Python, and files don't keep it; "
                f"give the same again: dataclasses.replace(experiment, {what}=...) {again}"
            )


def _dataset(experiment: Experiment) -> Dataset:
    if isinstance(experiment.dataset, Dataset):
        check_dataset(experiment.dataset)
        return experiment.dataset
    return load_dataset(
        experiment.dataset,
        experiment.data_root,
        limit=experiment.train_images,
        download=experiment.download,
        seed=experiment.seed,
        image_size=experiment.image_size,
    )


def _model(experiment: Experiment, dataset: Dataset) -> tuple[nn.Module, str]:
    with making_seeded(experiment.seed, "weights"):
        model, origin = classifier(
            experiment.model,
            num_classes=len(dataset.classes),
            in_channels=dataset.shape[0],
            pretrained=experiment.pretrained,
            weights=experiment.weights,
        )
    if isinstance(experiment.model, str) and not is_factory(experiment.model):
        return model, origin
    sample = Split(dataset.normalise(dataset.test.images[:2]), dataset.test.labels)
    outputs = _outputs(model, sample)
    if outputs < len(dataset.classes):
        raise InputError(f"the model tells {outputs} classes apart; data set {dataset.name} has {len(dataset.classes)}")
    return model, origin
