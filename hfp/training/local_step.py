"""Trains a compact submodel on one client's data, and asks a model about such data."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from hfp.data.augmentation import draw_moves, move
from hfp.errors import InputError
from hfp.training.batch_norm import estimate

LARGE_BATCH = 500  # images per forward pass where nothing is trained

Normalise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains: by plain SGD over its shuffled data.

    Args:
        epochs: local epochs in this round.
        batch_size: images per step.
        learning_rate: SGD's learning rate.
        momentum: SGD's momentum.
        weight_decay: SGD's weight decay.
        augment: shift and mirror images at random.
        measure_variance: also measure how much the gradients of the steps vary, in the memory of one more model.
        amp: compute forward and backward passes in bfloat16 where PyTorch's autocast deems it safe; weights stay in
            float32.
        channels_last: lay out images and filters with their channels last, which half-precision convolutions on GPUs
            prefer.
        rate_factor: what multiplies the learning rate in this round; None where the rate never changes.
        clip_norm: the Euclidean norm down to which longer gradients are scaled; 0 leaves them as they are.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    augment: bool = False
    measure_variance: bool = False
    amp: bool = False
    channels_last: bool = False
    rate_factor: float | None = None
    clip_norm: float = 0.0

    @property
    def rate(self) -> float:
        """The learning rate of this round."""
        return self.learning_rate if self.rate_factor is None else self.rate_factor * self.learning_rate

    @property
    def step_size(self) -> float:
        """The effective length of a step once momentum has built up."""
        return self.rate / (1 - self.momentum)

    def steps(self, samples: int) -> int:
        """Count the steps that all local epochs take over so many samples."""
        return self.epochs * len(list(batches(samples, self.batch_size)))


@dataclass(frozen=True)
class LocalResult:
    """What training took and what it reached.

    Args:
        steps: the number of steps.
        samples: the number of samples seen in all steps.
        loss: the mean loss over these samples.
        variance: the variance of a step's gradient around the mean of all steps, summed over parameters; None where it
            was not measured.
    """

    steps: int
    samples: int
    loss: float
    variance: float | None = None


@dataclass(frozen=True, eq=False)
class LocalData:
    """A client's data.

    Args:
        images: `[samples, channels, height, width]`.
        labels: `[samples]`.
        normalise: turns images into the model's inputs.
    """

    images: Tensor
    labels: Tensor
    normalise: Normalise


def on_device(data: LocalData, device: torch.device) -> LocalData:
    """Move data to `device` if that is a GPU and the images take at most half of its free memory."""
    if device.type != "cuda" or data.images.device == device:
        return data
    free, _ = torch.cuda.mem_get_info(device)
    if math.prod(data.images.shape) * data.images.dtype.itemsize > free // 2:
        return data
    whole = data.images[:]  # of a share of large images (`hfp.data.rows.Rows`) this makes a tensor
    return LocalData(whole.to(device), data.labels.to(device), data.normalise)


class Objective:
    """What a client minimises, which is cross-entropy. A method that minimises something else overrides `loss`."""

    tensors: Mapping[str, Tensor] = MappingProxyType({})
    """The tensors that `loss` and `gradients` read or add to, by name, on the model's device.

    A step that is replayed puts tensors of its own in their place. It copies these in before a client's first step,
    and copies the results out after its last step. So look a tensor up in `self.tensors` whenever you need it.
    """

    def constants(self) -> Hashable | None:
        """Return all else that `loss`, `gradients` and the model's hooks depend on; None if a step can't be replayed.

        Two objectives of one class with equal constants must do the same to models, batches and `tensors` of equal
        shapes, without looking at a value. A subclass that does not override this can't be replayed.
        """
        return () if type(self) is Objective else None

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over a batch."""
        return functional.cross_entropy(model(inputs), labels)

    def gradients(self, model: nn.Module) -> None:
        """Read or change `model`'s gradients between the backward pass and the step."""
        return


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one step.

    Args:
        images: `[samples, channels, height, width]`.
        labels: `[samples]`.
        moves: the shifts and mirrorings that augment the images (`hfp.data.augmentation`), None for none.
    """

    images: Tensor
    labels: Tensor
    moves: tuple[Tensor, Tensor] | None = None

    def tensors(self) -> list[Tensor]:
        """Return all tensors of the batch."""
        return [self.images, self.labels, *(self.moves or ())]


class LocalStep:
    """Trains a model in place, one batch at a time. It is the plain reference of all faster ways.

    Args:
        model: the model to train.
        normalise: turns images into its inputs.
        training: how to train.
        objective: what to minimise.

    Attributes:
        total: the sum of the loss over the samples seen, on the model's device.
    """

    def __init__(self, model: nn.Module, normalise: Normalise, training: LocalTraining, objective: Objective) -> None:
        self.model, self.objective = model, objective
        self._normalise, self._training = normalise, training
        self._device = next(model.parameters()).device
        first = next(model.parameters())
        self.rate = None if training.rate_factor is None else first.new_tensor(training.rate)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=training.learning_rate if self.rate is None else 1.0,
            momentum=training.momentum,
            weight_decay=training.weight_decay if self.rate is None else 0.0,
        )
        self.total = torch.zeros((), device=self._device)
        self.spread = _Spread() if training.measure_variance else None

    def run(self, batch: Batch) -> None:
        """Take one step on a batch that is on the model's device."""
        images = batch.images if batch.moves is None else move(batch.images, *batch.moves)
        inputs = self._normalise(images)
        if self._training.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with as_computed(self._device, self._training):
            loss = self.objective.loss(self.model, inputs, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.spread is not None:
            self.spread.add(self.model)
        self.objective.gradients(self.model)
        if self._training.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._training.clip_norm)
        if self.rate is not None:
            self._scale_gradients(self.rate)
        self.optimizer.step()
        self.total += loss.detach() * len(batch.labels)

    def _scale_gradients(self, rate: Tensor) -> None:
        """Make gradients ``rate (g + λ w)``: SGD at rate 1 without weight decay then takes the step of that rate.

        The rate is a tensor, so that a captured step can be given another one. It stays the same over a round, and
        momentum starts anew in each, so that the sum of scaled gradients is the scaled sum.
        """
        parameters: list[Tensor] = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        with torch.no_grad():
            if self._training.weight_decay:
                torch._foreach_add_(gradients, parameters, alpha=self._training.weight_decay)
            torch._foreach_mul_(gradients, rate)


def train(
    model: nn.Module,
    data: LocalData,
    training: LocalTraining,
    generator: torch.Generator,
    objective: Objective | None = None,
    schedule: Sequence[Tensor] | None = None,
    step: LocalStep | None = None,
    wait: Callable[[], None] = lambda: None,
) -> LocalResult:
    """Train a model in place.

    Args:
        model: the model to train.
        data: the client's data.
        training: how to train.
        generator: all random numbers are drawn from it before the first step.
        objective: what to minimise; by default cross-entropy.
        schedule: the samples of each batch; by default those of all local epochs (`schedule_of`).
        step: takes the steps; by default a `LocalStep` of the model and the objective.
        wait: is called before the loss is read from the device.

    Raises:
        InputError: the loss became NaN or infinite.
    """
    objective = Objective() if objective is None else objective
    schedule = schedule_of(len(data.labels), training, generator) if schedule is None else schedule
    moves = [draw_moves(len(chosen), generator) for chosen in schedule] if training.augment else []
    model.train()
    if step is None:
        if training.channels_last:
            model.to(memory_format=torch.channels_last)
        step = LocalStep(model, data.normalise, training, objective)
    seen = 0
    for batch in _batches_on(next(model.parameters()).device, data, schedule, moves):
        step.run(batch)
        seen += len(batch.labels)
    wait()
    mean = float(step.total) / max(seen, 1)
    if not math.isfinite(mean):
        raise InputError(f"training diverged (loss {mean}) at learning rate {training.rate:g}; use a smaller one")
    return LocalResult(len(schedule), seen, mean, None if step.spread is None else step.spread.variance())


def _batches_on(
    device: torch.device, data: LocalData, schedule: Sequence[Tensor], moves: Sequence[tuple[Tensor, Tensor]]
) -> Iterator[Batch]:
    """Yield the batches of a schedule; the indices and the moves are each sent to the device in one piece."""
    if not schedule:
        return
    sizes = [len(chosen) for chosen in schedule]
    order = torch.cat(list(schedule)).to(data.images.device).split(sizes)
    moved: list[tuple[Tensor, Tensor] | None] = [None] * len(sizes)
    if moves:
        shifts = torch.cat([shift for shift, _ in moves], 1).to(device).split(sizes, 1)
        mirrored = torch.cat([mirror for _, mirror in moves]).to(device).split(sizes)
        moved = list(zip(shifts, mirrored, strict=True))
    for chosen, each in zip(order, moved, strict=True):
        yield Batch(data.images[chosen].to(device), data.labels[chosen].to(device), each)


class _Spread:
    """The unbiased variance of gradients, ``(Σ ‖g‖² - ‖Σ g‖²/n) / (n - 1)``."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._squares, self._steps = 0.0, 0

    def add(self, model: nn.Module) -> None:
        self._steps += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self._squares += float(parameter.grad.square().sum())
                known = self._sums.get(name)
                self._sums[name] = parameter.grad.clone() if known is None else known.add_(parameter.grad)

    def variance(self) -> float:
        if self._steps < 2:
            return 0.0
        mean = sum(float(total.square().sum()) for total in self._sums.values()) / self._steps
        return max(self._squares - mean, 0.0) / (self._steps - 1)


def joined(results: Sequence[LocalResult]) -> LocalResult:
    """Join several trainings, one after the other, into one; means are weighted by samples."""
    samples = sum(result.samples for result in results)
    measured = [result.variance for result in results if result.variance is not None]
    return LocalResult(
        steps=sum(result.steps for result in results),
        samples=samples,
        loss=sum(result.loss * result.samples for result in results) / samples,
        variance=sum((r.variance or 0.0) * r.samples for r in results) / samples if measured else None,
    )


def schedule_of(samples: int, training: LocalTraining, generator: torch.Generator) -> list[Tensor]:
    """Draw the batches of all local epochs, each as the indices of its samples."""
    return [chosen for _ in range(training.epochs) for chosen in batches(samples, training.batch_size, generator)]


def batches(samples: int, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yield the indices of all samples in batches, shuffled when a generator is given.

    A last batch of one sample is dropped, because batch-norm has no statistics of a single value.
    """
    order = torch.arange(samples) if generator is None else torch.randperm(samples, generator=generator)
    for chosen in order.split(batch_size):
        if len(chosen) > 1:
            yield chosen


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicted for samples, or several models together.

    Args:
        correct: 1 where it was right and 0 elsewhere, float64 `[samples]`.
        losses: its cross-entropy, float64 `[samples]`.
        confusion: how many samples of each class it gave each class, float64 `[true class, answered class]`.
    """

    correct: Tensor
    losses: Tensor
    confusion: Tensor

    def times(self, weight: float) -> Predictions:
        """Return all figures multiplied by a weight."""
        return Predictions(weight * self.correct, weight * self.losses, weight * self.confusion)

    def plus(self, other: Predictions) -> Predictions:
        """Return the sum of two."""
        return Predictions(self.correct + other.correct, self.losses + other.losses, self.confusion + other.confusion)

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1 scores, in [0, 1], over the classes that a sample has or that was answered.

        A class's score is the harmonic mean of precision and recall, ``2 TP / (2 TP + FP + FN)``, so that every class
        counts alike, however many samples it has.
        """
        true, answered = self.confusion.sum(1), self.confusion.sum(0)
        there = true + answered > 0
        return float((2 * self.confusion.diagonal() / (true + answered))[there].mean())


@torch.no_grad()
def predict(model: nn.Module, data: LocalData, schedule: Sequence[Tensor], training: LocalTraining) -> Predictions:
    """Predict all samples of `data` in the model's present mode; the batches of `schedule` hold each sample once."""
    device = next(model.parameters()).device
    answers, losses, outputs = [], [], 0
    for batch in _batches_on(device, data, schedule, ()):
        with as_computed(device, training):
            scores = model(data.normalise(batch.images))
        answers.append(scores.argmax(1))
        losses.append(functional.cross_entropy(scores.double(), batch.labels, reduction="none"))
        outputs = scores.shape[1]
    order, labels = torch.cat(list(schedule)), data.labels.cpu()
    answered, lost = torch.empty_like(labels), torch.empty(len(labels), dtype=torch.float64)
    answered[order], lost[order] = torch.cat(answers).cpu(), torch.cat(losses).cpu()
    confusion = torch.bincount(labels * outputs + answered, minlength=outputs**2).view(outputs, outputs)
    return Predictions((answered == labels).double(), lost, confusion.double())


def as_computed(device: torch.device, training: LocalTraining) -> torch.autocast:
    """Compute convolutions and products in the precision that `training` asks for, while inside."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.amp)


def statistics_of(model: nn.Module, data: LocalData, training: LocalTraining) -> dict[str, Tensor]:
    """Give `model` the batch-norm statistics of the images in `batches`, and return them.

    They are measured as in `hfp.training.batch_norm.estimate`.
    """
    device = next(model.parameters()).device
    schedule = list(batches(len(data.labels), LARGE_BATCH))
    inputs = (data.normalise(batch.images) for batch in _batches_on(device, data, schedule, ()))
    with as_computed(device, training):
        return estimate(model, inputs)
