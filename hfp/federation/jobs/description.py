"""Describes a federation in plain values, from which a worker process sets it up again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from hfp.data import Dataset
from hfp.data.dataset import Split
from hfp.data.rows import LARGE_BYTES
from hfp.errors import InputError
from hfp.federation.experiment import Experiment
from hfp.federation.setup import Federation, dealt_out, set_up
from hfp.methods.interface.registry import method_class

ALONE = "or take 1 job, which needs no other process"
TESTED = 2
"""A worker has this many test samples, on which a user's own model is tried when it is made."""


def described(federation: Federation) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe a federation, and return the tensors that go with the description.

    Clients need the architecture of the model alone, so files of weights are not read again.

    Raises:
        InputError: the model, the data set or the method is one that another process can't make.
    """
    experiment = federation.experiment
    settings = {**experiment.as_dict(), "model": _model(experiment), "pretrained": False, "weights": None}
    data, tensors = _data(federation.dataset, experiment)
    settings |= _partition(federation, sent=data is not None)
    if data is not None:
        settings |= {"dataset": None, "data_root": None, "train_images": None, "image_size": None, "download": False}
    return {
        "settings": settings,
        "data": data,
        "method": _module_of_method(experiment.method),
        "arithmetic": _arithmetic(),
    }, tensors


def set_up_as(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Federation:
    """Set a federation up as it was described, with images that stay where they are.

    Raises:
        InputError: it can't be set up here.
    """
    _compute_so(description["arithmetic"])
    try:
        import_module(description["method"])
    except ImportError as error:
        raise InputError(f"the method's module can't be imported: {error}") from error
    settings, data = dict(description["settings"]), description["data"]
    if data is not None:
        settings["dataset"] = Dataset(
            name=data["name"],
            classes=tuple(data["classes"]),
            shape=tuple(data["shape"]),
            train=Split(tensors["train.images"], tensors["train.labels"]),
            test=Split(tensors["test.images"], tensors["test.labels"]),
            mean=tensors["mean"],
            std=tensors["std"],
        )
    return set_up(Experiment(**settings), copies=False)


def _data(dataset: Dataset, experiment: Experiment) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Describe the data set; None for a large tree of images, which every process maps from the same file."""
    images, test = dataset.train.images, dataset.test
    if experiment.dataset == "imagefolder" and images.numel() * images.element_size() >= LARGE_BYTES:
        return None, {}
    if type(dataset) is not Dataset:
        raise InputError(
            f"the data set {dataset.name} is of the class {type(dataset).__name__}, which worker processes don't make: "
            f"use hfp.data.make_dataset or hfp.data.from_tensors, {ALONE}"
        )
    tensors = {
        "train.images": images,
        "train.labels": dataset.train.labels,
        "test.images": test.images[:TESTED],
        "test.labels": test.labels[:TESTED],
        "mean": dataset.mean,
        "std": dataset.std,
    }
    return {"name": dataset.name, "classes": list(dataset.classes), "shape": list(dataset.shape)}, tensors


def _partition(federation: Federation, sent: bool) -> dict[str, Any]:
    """Describe who has what, where no scheme says it; a worker that reads the data itself knows their clients too."""
    experiment = federation.experiment
    if isinstance(experiment.partition, str) and (not sent or experiment.deals_by_scheme):
        return {}
    parts = dealt_out(experiment, federation.dataset)[1]
    return {"partition": [part.tolist() for part in parts], "clients_file": None}


def _model(experiment: Experiment) -> str:
    """Return the name by which a worker makes the model."""
    model = experiment.model
    if isinstance(model, str):
        return model
    if not isinstance(model, nn.Module):
        module, name = getattr(model, "__module__", ""), getattr(model, "__qualname__", "")
        if module != "__main__" and getattr(sys.modules.get(module), name, None) is model:
            return f"{module}:{name}"
    raise InputError(
        f"worker processes can't be sent the model {experiment.model_name}: give the name of a function that makes it, "
        f"module:factory, or the function itself where it is in a module that can be imported, {ALONE}"
    )


def _module_of_method(name: str) -> str:
    module = method_class(name).__module__
    if module == "__main__":
        raise InputError(
            f"worker processes can't import the method {name}, which is in the program itself: "
            f"put it in a module and import that, {ALONE}"
        )
    return module


def _arithmetic() -> dict[str, Any]:
    """Return how this process computes, in which workers must not differ."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _compute_so(arithmetic: Mapping[str, Any]) -> None:
    torch.set_num_threads(arithmetic["threads"])
    torch.set_default_dtype(getattr(torch, arithmetic["dtype"]))
    torch.set_float32_matmul_precision(arithmetic["precision"])
    torch.use_deterministic_algorithms(arithmetic["deterministic"])
