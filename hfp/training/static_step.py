"""A local step on tensors that stay in place, which a GPU captures once as a CUDA graph and then replays.

Small networks keep a GPU busy for less time than it takes to start their kernels one by one; a graph starts all kernels
of a step at once. They are the same kernels on the same values, so the result is that of `LocalStep` to the last bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hfp.errors import first_line
from hfp.training.local_step import Batch, LocalStep, LocalTraining, Normalise, Objective

WARM_UP = 3  # steps before a capture, in which libraries choose algorithms and take their memory


class StaticStep(LocalStep):
    """A `LocalStep` whose batch, momentum and objective's tensors are its own and are copied in and out.

    A batch of another size than `size`, such as the odd last one of an epoch, is not replayed but runs on the same
    model, momentum and tensors. A model whose step draws random numbers is never replayed.

    Args:
        model: trained in place; its tensors must stay where they are.
        normalise: as in `LocalData`.
        training: how to train; its number of epochs does not matter, nor its rate where `of` gives another one.
        objective: the first that is minimised; later ones have tensors of the same names and shapes.
        size: samples in a batch that is replayed.
        pool: the graph memory that this step shares with others which never run at the same time.
    """

    def __init__(
        self,
        model: nn.Module,
        normalise: Normalise,
        training: LocalTraining,
        objective: Objective,
        size: int,
        pool: Any = None,
    ) -> None:
        super().__init__(model, normalise, training, objective)
        self._size, self._pool = size, pool
        self._own = {name: tensor.clone() for name, tensor in objective.tensors.items()}
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._momentum = [torch.zeros_like(parameter) for parameter in self._parameters] if training.momentum else []
        for parameter, momentum in zip(self._parameters, self._momentum, strict=False):
            self.optimizer.state[parameter]["momentum_buffer"] = momentum
        self._places = self._pointers()
        self._batch: Batch | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self.replays = 0

    @property
    def moved(self) -> bool:
        """Whether the model's tensors have been replaced since, so that this step is of no further use."""
        return self._pointers() != self._places

    @contextmanager
    def of(self, objective: Objective, training: LocalTraining) -> Iterator[None]:
        """Minimise `objective` at the rate of `training` while inside, starting without momentum.

        The objective's tensors are up to date at the end.
        """
        given = objective.tensors
        with torch.no_grad():
            for name, tensor in self._own.items():
                tensor.copy_(given[name])
            torch._foreach_zero_([*self._momentum, self.total])
            if self.rate is not None:
                self.rate.fill_(training.rate)
        self.objective = objective
        if self._own:
            objective.tensors = self._own
        try:
            yield
        finally:
            if self._own:
                objective.tensors = given
            for name, tensor in self._own.items():
                given[name].copy_(tensor)

    def run(self, batch: Batch) -> None:
        """Take one step on a batch that is on the model's device."""
        if len(batch.labels) != self._size:
            super().run(batch)
            return
        if self._batch is None:
            moves = batch.moves and (batch.moves[0].clone(), batch.moves[1].clone())
            self._batch = Batch(batch.images.clone(), batch.labels.clone(), moves)
            self._prepare(self._batch)
        else:
            for own, tensor in zip(self._batch.tensors(), batch.tensors(), strict=True):
                own.copy_(tensor)
        if self._graph is None:
            super().run(self._batch)
        else:
            self._graph.replay()
        self.replays += 1

    def _prepare(self, batch: Batch) -> None:
        """Try the step, capture it if that can be done, and undo what this did to the model."""
        values = [*self.model.parameters(), *self.model.buffers(), *self._momentum, *self._own.values(), self.total]
        values = [tensor.detach() for tensor in values]
        before, random = [tensor.clone() for tensor in values], self._random_states()
        try:
            for _ in range(WARM_UP if self._device.type == "cuda" else 1):
                super().run(batch)
            if any(not torch.equal(a, b) for a, b in zip(random, self._random_states(), strict=True)):
                self._set_random_states(random)
                self._say("it draws random numbers")
            elif self._device.type == "cuda":
                self._graph = self._captured(batch)
        except RuntimeError as error:
            if self._device.type != "cuda":
                raise
            self._say(first_line(error))
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            for tensor, value in zip(values, before, strict=True):
                tensor.copy_(value)

    def _captured(self, batch: Batch) -> torch.cuda.CUDAGraph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            super().run(batch)
        return graph

    def _say(self, reason: str) -> None:
        warnings.warn(f"a step of {type(self.model).__name__} is not replayed as a CUDA graph: {reason}", stacklevel=2)

    def _pointers(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]

    def _random_states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states

    def _set_random_states(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)
