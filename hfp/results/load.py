"""A run's folder as something to use: the global model, ready to predict, and clients' own models."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from hfp import reconstruct
from hfp.errors import InputError, counted
from hfp.federation.experiment import Experiment
from hfp.federation.setup import coupled_groups
from hfp.methods import create_method
from hfp.models.exits import WithExits, only_what_runs
from hfp.models.source import copy_of
from hfp.reconstruct import Coupling, IndexMap, Pruned, PrunedFile, compact_model, read_pruned
from hfp.results.classifier import TrainedClassifier
from hfp.results.description import ModelDescription, ModelSource, read_description, read_json
from hfp.results.files import CONFIGURATION, METRICS, MODEL, run_folder
from hfp.results.folder import MACHINE
from hfp.results.submodels import RUN, client_file, read_plan, with_its_exits
from hfp.results.tensor_file import read
from hfp.training.batch_norm import has_statistics

_OTHERWISE_TESTED = {"local": "every client's own", "batch": "each batch's own"}


@dataclass(frozen=True, eq=False, repr=False)
class Submodel(TrainedClassifier):
    """A client's own compact model, ready to predict.

    Args:
        client: whose it is; None for the whole global model, which ``hfp extract`` writes where no client is named.
        index_map: its place in the full model. Of a model whose later exits the client does not train, the tensors that
            only these need are empty, though the map keeps channels of them.
        trained: True where it is as the client's training left it, with batch-norm statistics of the client's data;
            False where it is the part of the global model that the client's last plan keeps, with the global model's
            statistics (`reestimate` takes them anew from some images).
        round: the round, counted from 1, in which it was trained or planned.
        description: how to make the full model again.
    """

    client: int | None
    index_map: IndexMap
    trained: bool
    round: int
    description: ModelDescription

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        made = "trained" if self.trained else "planned"
        whose = "the global model" if self.client is None else f"client {self.client}"
        return f"Submodel({whose}, {parameters:,} parameters, {made} in round {self.round})"


@dataclass(frozen=True, eq=False, repr=False)
class SavedRun(TrainedClassifier):
    """A finished run from its folder, which can predict with its global model.

    Args:
        model: the global model in evaluation mode.
        classes: the name of every class.
        input: what the model takes.
        folder: where it was read from.
        settings: the fields of the run's experiment, from ``config.json``.
        history: every round's figures, as in ``metrics.jsonl`` (`hfp.federation.records.RoundRecord.as_dict`).
        description: how to make the full model again.

    >>> import hfp, torch
    >>> experiment = hfp.Experiment(clients=2, train_images=64, rounds=1, head_start=1.0)
    >>> run = hfp.simulate(experiment, resume="runs/mine")
    >>> saved = hfp.load_run("runs/mine")
    >>> saved.predict(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))[0].label in saved.classes
    True
    """

    folder: Path
    settings: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    description: ModelDescription

    def __repr__(self) -> str:
        about = f"{self.settings.get('method')} on {self.settings.get('dataset')}, {self.description.model}"
        rounds = counted(len(self.history), "round")
        return f"SavedRun({str(self.folder)!r}: {about}, {rounds}, {self.accuracy:.2f} %)"

    @cached_property
    def experiment(self) -> Experiment:
        """The run's experiment.

        Raises:
            InputError: its method or data set is not known here, because it was registered in Python.
        """
        names = {entry.name for entry in dataclasses.fields(Experiment)}
        return Experiment(**{name: value for name, value in self.settings.items() if name in names})

    @property
    def accuracy(self) -> float:
        """The global model's accuracy in percent when it was last tested; NaN if never."""
        tested = [line.get("accuracy") for line in self.history]
        return next((found for found in reversed(tested) if found is not None), math.nan)

    def submodel(self, client: int) -> Submodel:
        """Make a client's own compact model, as trained where the run saved it (``--save-clients``), else as planned.

        Args:
            client: its index, from 0.

        Raises:
            InputError: the client was never asked to train, its plan is damaged or of another model, or the metrics
                file does not say which ratio it had.
            MapError: its file is damaged or of another model.
        """
        path = client_file(self.folder, client)
        if path.is_file():
            found = reconstruct.load_pruned(path, self.model)
            model, about = only_what_runs(found.model), found.metadata
            return self._submodel(client, model, found.index_map, True, _round_in(path, about))
        plan = read_plan(self.folder, client)
        index_map = plan.index_map(self._groups)
        model = compact_model(self.model, index_map)
        if isinstance(model, WithExits) and self.description.prepared_by:
            method = create_method(self.description.prepared_by, **self.settings.get("options", {}))
            ratio = self._ratio(client, plan.round)
            model, index_map = with_its_exits(method, ratio, model, index_map)
        return self._submodel(client, model.eval(), index_map, False, plan.round)

    def _ratio(self, client: int, round: int) -> float:
        """Return the ratio that a client had in a round, counted from 1."""
        try:
            (line,) = (line for line in self.history if line["round"] == round)
            (ratio,) = (record["ratio"] for record in line["clients"] if record["client"] == client)
            if 0 <= ratio < 1:
                return float(ratio)
        except (KeyError, TypeError, ValueError):
            pass
        raise InputError(
            f"{self.folder / METRICS} has no ratio of client {client} in round {round}, which says how many exits its "
            "model has"
        )

    @cached_property
    def _groups(self) -> Coupling:
        return coupled_groups(self.model, self.input.shape)

    def _submodel(self, client: int, model: nn.Module, index_map: IndexMap, trained: bool, round: int) -> Submodel:
        return Submodel(model, self.classes, self.input, client, index_map, trained, round, self.description)


def load_run(folder: str | os.PathLike[str], model: ModelSource | None = None) -> SavedRun:
    """Load a run from its folder, with the global model ready to predict.

    Nothing in the folder is run or unpickled.

    Args:
        folder: what ``hfp run`` wrote, or a file of the run inside, such as ``global.safetensors``.
        model: the full model's architecture, needed where the run does not name it because it was given in Python. It
            is a module, which is copied, a callable that returns one, or ``module:factory``.

    Returns:
        The run, with the model in evaluation mode.

    Raises:
        InputError: a file is missing, damaged or of another format version, the model has to be given, or it has
            tensors of other names or shapes than the run's.

    >>> import hfp
    >>> experiment = hfp.Experiment(clients=2, train_images=64, rounds=1, head_start=1.0)
    >>> run = hfp.simulate(experiment, resume="runs/mine")
    >>> hfp.load_run("runs/mine").submodel(client=0).trained
    False
    """
    path = run_folder(Path(folder))
    if not path.is_dir():
        raise InputError(f"there is no folder {path}; give the folder that hfp run wrote")
    description, settings = read_description(path), read_settings(path)
    full = copy_of(description.skeleton(model)) if isinstance(model, nn.Module) else description.skeleton(model)
    _fill(full, path / MODEL)
    policy = settings.get("batch_norm")
    if policy in _OTHERWISE_TESTED and has_statistics(full):
        warnings.warn(
            f"the run tested its model with {_OTHERWISE_TESTED[policy]} batch-norm statistics (batch_norm={policy}); "
            "this model has the averaged ones, so it may predict otherwise: run.reestimate(images) takes them anew",
            stacklevel=2,
        )
    return SavedRun(
        full.eval(), description.classes, description.input, path, settings, read_history(path / METRICS), description
    )


def load_pruned(path: str | os.PathLike[str], skeleton: nn.Module | None = None) -> Pruned:
    """Build the compact model in a file that ``hfp prune``, `hfp.save_pruned` or ``hfp extract`` wrote.

    Args:
        path: the file.
        skeleton: the full model with any weights, which is not changed. It is needed unless the file names the model.

    Returns:
        The compact model in evaluation mode, its index map and the file's metadata. The file does not say the memory
        format: filters are in the skeleton's, such as `torch.channels_last`.

    Raises:
        MapError: the file is damaged or of another format version, or the skeleton is missing or of another model.
        InputError: the file is a run's full model, or what it says of the run that it is from is damaged.

    >>> import hfp, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    >>> result = hfp.prune(model, torch.zeros(1, 4), hfp.Budget(params=0.5))
    >>> path = hfp.save_pruned(result, "pruned.safetensors")
    >>> hfp.load_pruned(path, skeleton=model).model[0].out_features
    31
    """
    refuse_full_model(Path(path))
    if skeleton is None:
        skeleton = skeleton_in(read_pruned(path))
    return reconstruct.load_pruned(path, skeleton)


def skeleton_in(stored: PrunedFile) -> nn.Module | None:
    """Make the full model's architecture that a file from a run names; None if timm makes it or none is named."""
    description = description_in(stored)
    if stored.timm is not None or description is None or not description.named:
        return None
    return description.skeleton()


def description_in(stored: PrunedFile) -> ModelDescription | None:
    """Return what a file from a run says of its full model; None for other files.

    Raises:
        InputError: it is damaged.
    """
    found = stored.metadata.get(RUN)
    return None if found is None else ModelDescription.parse(found, f"{stored.path}, {RUN}")


def load_submodel(path: str | os.PathLike[str], model: ModelSource | None = None) -> Submodel:
    """Load a client's model from a file that ``hfp extract`` or ``hfp run --save-clients`` wrote, ready to predict.

    Args:
        path: the file.
        model: the full model's architecture, where the file does not name it.

    Raises:
        InputError: the file is not from a run or needs the run's folder, or the model has to be given.
        MapError: the file is damaged, or of another model.

    >>> import hfp, torch
    >>> from pathlib import Path
    >>> from hfp.results.model_files import ModelFiles
    >>> experiment = hfp.Experiment(clients=2, train_images=64, rounds=1, head_start=1.0)
    >>> files = ModelFiles(Path("runs/saved"), save_clients=True)
    >>> run = hfp.simulate(experiment, resume="runs/saved", observers=[files])
    >>> mine = hfp.load_submodel("runs/saved/clients/client-0.safetensors")
    >>> mine.predict(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))[0].label in mine.classes
    True
    """
    refuse_full_model(Path(path))
    stored = read_pruned(path)
    description = description_in(stored)
    if description is None:
        raise InputError(
            f"{path} does not say what its model takes; give the folder of a run, or a file of hfp extract"
        )
    skeleton = None if stored.timm is not None and model is None else description.skeleton(model)
    found = reconstruct.load_pruned(path, skeleton)
    about = found.metadata
    return Submodel(
        only_what_runs(found.model), description.classes, description.input, about.get("client"), found.index_map,
        bool(about.get("trained")), _round_in(path, about), description,
    )  # fmt: skip


def _round_in(path: str | os.PathLike[str], metadata: Mapping[str, Any]) -> int:
    found = metadata.get("round", 0)
    if type(found) is not int:
        raise InputError(f"{path} is damaged: round must be a whole number; found {found!r}")
    return found


def is_run(path: Path) -> bool:
    """Tell whether a path is a run's folder, or one of the run's files in it."""
    return run_folder(path).is_dir()


def refuse_full_model(path: Path) -> None:
    """Refuse a run's full model, which is of no use without its folder.

    Raises:
        InputError: saying what it is.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return
    if {"model", "dataset", "method"} <= metadata.keys():
        raise InputError(
            f"{path} is the full model of a run ({metadata['model']}, trained by {metadata['method']} on "
            f"{metadata['dataset']}); what else is needed to use it is in the run's folder, which hfp.load_run takes: "
            "keep the file there, under its name"
        )


def _fill(model: nn.Module, path: Path) -> None:
    """Put the state of a file into the model, if it is this model's to the last shape."""
    try:
        _, state = read(path)
    except FileNotFoundError:
        raise InputError(f"there is no {path.name} in {path.parent}; the run has not ended its first round") from None
    own = model.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    if odd:
        raise InputError(f"{path} is of another model than {type(model).__name__}: only one of them has {odd[0]}")
    for name, tensor in own.items():
        if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype):
            raise InputError(
                f"{path} is of another model than {type(model).__name__}: {name} is {state[name].dtype} "
                f"{list(state[name].shape)}, expected {tensor.dtype} {list(tensor.shape)}"
            )
    model.load_state_dict(state)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the fields of a run's experiment, as plain values, from its folder.

    Raises:
        InputError: the file is missing or damaged.
    """
    settings = read_json(folder / CONFIGURATION)
    if not isinstance(settings, dict):
        raise InputError(f"{folder / CONFIGURATION} is damaged: expected an object; found {type(settings).__name__}")
    settings.pop(MACHINE, None)
    return settings


def read_history(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Read the lines of the metrics file, without half a line that an interruption may have left at its end.

    Raises:
        InputError: the file can't be read or is damaged.
    """
    try:
        *lines, rest = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}") from error
    history = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is damaged: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number} is damaged: expected an object")
        if not isinstance(accuracy := record.get("accuracy"), (int, float, type(None))):
            raise InputError(f"{path}, line {number} is damaged: accuracy must be a number; found {accuracy!r}")
        history.append(record)
    return tuple(history)
