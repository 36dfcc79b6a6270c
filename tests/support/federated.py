"""What tests of federated methods share: a small network in float64, its clients, and rounds with made-up training."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hfp.costs.macs import MacCounter
from hfp.costs.memory import PeakBytesCounter
from hfp.methods import Client, ClientContext, Method, MethodContext, Reply, ServerState, Task, Update
from hfp.models import classifier_of, create_model
from hfp.reconstruct import Coupling
from hfp.training.local_step import LocalData, LocalTraining

CLIENTS = (Client(0, 30, 0.25), Client(1, 50, 0.5), Client(2, 20, 0.75))
SAMPLES = sum(client.samples for client in CLIENTS)
STEP_SIZE = 0.5
STEPS = 4


def small_network() -> nn.Module:
    """A residual network of 8, 16 and 32 channels for images of one channel."""
    torch.manual_seed(0)
    return create_model("resnet8", in_channels=1, width=0.5).double()


def context_of(
    model: nn.Module, clients: tuple[Client, ...] = CLIENTS, shape: tuple[int, ...] = (1, 8, 8)
) -> MethodContext:
    example = torch.zeros(1, *shape, dtype=next(model.parameters()).dtype)
    head = classifier_of(model)
    groups = Coupling.trace(
        model, example.repeat(2, 1, 1, 1), list(head) if isinstance(head, nn.ModuleList) else [head]
    )
    own = {id(parameter) for parameter in head.parameters()}
    classifier = tuple(name for name, parameter in model.named_parameters() if id(parameter) in own)
    return MethodContext(model, groups, tuple(dict(model.named_parameters())), clients, 0, example, classifier)


def prepared(method: Method, model: nn.Module, context: MethodContext) -> tuple[nn.Module, MethodContext]:
    """The model that a method makes of a model, and its context."""
    own = copy.deepcopy(model)
    made = method.prepare(own, context.example)
    return (model, context) if made is own else (made, context_of(made, context.clients, context.example.shape[1:]))


def begin(model: nn.Module, method: Method, context: MethodContext) -> ServerState:
    return method.start(context, {name: tensor.clone() for name, tensor in model.state_dict().items()})


def assigned(method: Method, context: MethodContext, state: ServerState, client: Client) -> Task:
    return method.send(context, state, client, method.plan(context, state, client))


def update_of(client: Client, task: Task, tensors: dict[str, Tensor], steps: int = STEPS) -> Update:
    reply = Reply(tensors, steps, samples=8, loss=0.0, parameters=0, forward_macs=0, training_macs=0)
    return Update(client, task, reply, STEP_SIZE)


def shaken(tensors: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The tensors after made-up training: noise on values, one more on counts."""
    return {
        name: tensor + torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.is_floating_point()
        else tensor + 1
        for name, tensor in tensors.items()
    }


def made_up(context: MethodContext, method: Method, state: ServerState, seed: int = 0) -> Iterator[Update]:
    """Replies as clients would send them, with random changes."""
    generator = torch.Generator().manual_seed(seed)
    for client in context.clients:
        task = assigned(method, context, state, client)
        yield update_of(client, task, shaken(dict(task.tensors), generator))


def one_round(
    context: MethodContext, method: Method, state: ServerState, seed: int = 0
) -> tuple[list[Update], ServerState]:
    updates = list(made_up(context, method, state, seed))
    return updates, collected(context, method, state, updates)


def collected(context: MethodContext, method: Method, state: ServerState, updates: list[Update]) -> ServerState:
    collector = method.collect(context, state)
    for update in updates:
        collector.add(update)
    return collector.finish()


def held(update: Update, name: str) -> Tensor:
    """A mask of the full shape: what the client held."""
    return update.task.index_map.masks()[name]


def dense(update: Update, name: str, elsewhere: Tensor) -> Tensor:
    """The client's tensor in the full shape, with the values of `elsewhere` where it held nothing."""
    full = elsewhere.clone()
    full[held(update, name)] = update.reply.tensors[name].reshape(-1)
    return full


def local_of(
    model: nn.Module,
    context: MethodContext,
    client: Client,
    *,
    round: int = 0,
    classes: tuple[int, ...] = tuple(range(10)),
    samples: int = 16,
    epochs: int = 1,
    momentum: float = 0.0,
) -> ClientContext:
    """A client with random images of some classes, four to a batch."""
    generator = torch.Generator().manual_seed(100 + client.index)
    images = torch.randn(samples, *context.example.shape[1:], generator=generator, dtype=context.example.dtype)
    labels = torch.tensor(classes)[torch.arange(samples) % len(classes)]
    training = LocalTraining(epochs, batch_size=4, learning_rate=0.1, momentum=momentum, weight_decay=0.0)
    return ClientContext(
        client=client,
        round=round,
        model=model,
        groups=context.groups,
        data=LocalData(images, labels, lambda batch: batch),
        training=training,
        count=MacCounter(context.example),
        count_peak_bytes=PeakBytesCounter(context.example),
        seed=context.seed,
        device=torch.device("cpu"),
    )
