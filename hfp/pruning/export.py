"""Export a compact model to ONNX and check the result. Needs the `onnx` extra."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hfp.atomic import whole_file
from hfp.errors import InputError, printable
from hfp.layers.calling import buffers_kept, call, modes_kept, results

_TOLERANCE = 1e-3  # of the largest output: other kernels, another order of sums


def export_onnx(model: nn.Module, inputs: Any, path: Path) -> float:
    """Write a model as ONNX and compare all its outputs in ONNX Runtime with the model's own, in evaluation mode.

    Args:
        model: on the CPU; it is left as it was.
        inputs: what the model is called with: one tensor `[batch, ...]`, a tuple or list of arguments, or a dict of
            keywords. The exported model takes any batch where it is one tensor, and the sizes given here otherwise.
        path: the ONNX file; it is written when the outputs agree, and an existing file is replaced in one step.

    Returns:
        The largest difference of any output.

    Raises:
        InputError: the `onnx` extra is missing, the model can't be exported, or its exported form gives other outputs.
    """
    check_exporter()
    with modes_kept(model), buffers_kept(model):
        model.eval()
        with torch.no_grad():
            expected = results(call(model, inputs))
        with whole_file(path) as unfinished:
            _export(model, inputs, unfinished)
            difference = _difference(unfinished, inputs, expected, path)
    return difference


def _difference(file: Path, inputs: Any, expected: list[Tensor], path: Path) -> float:
    """The largest difference of any output.

    Raises:
        InputError: the file gives another number of outputs, other shapes, or other values.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, _fed([one.name for one in session.get_inputs()], inputs))
    if [output.shape for output in found] != [tuple(output.shape) for output in expected]:
        shapes, right = ([list(output.shape) for output in outputs] for outputs in (found, expected))
        raise InputError(f"{path}: ONNX Runtime gives outputs of shapes {shapes}, the model {right}")
    largest = 0.0
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not other.numel():
            continue
        exact = other.double()
        difference = float((torch.from_numpy(one).double() - exact).abs().max())
        if not difference <= _TOLERANCE * max(float(exact.abs().max()), 1.0):
            raise InputError(f"{path}: output {number} of ONNX Runtime differs from the model's by {difference:.3g}")
        largest = max(largest, difference)
    return largest


def _fed(names: list[str], inputs: Any) -> dict[str, Any]:
    """The exported model's inputs: by name where keywords have these names, else one after the other."""
    if isinstance(inputs, Mapping) and all(isinstance(inputs.get(name), Tensor) for name in names):
        return {name: inputs[name].numpy() for name in names}
    return {name: tensor.numpy() for name, tensor in zip(names, results(inputs), strict=True)}


def check_exporter() -> None:
    """Raise an `InputError` if what exporting needs is not installed."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  (the exporter's own need)
    except ImportError as error:
        raise InputError(f'no export: {error.name} is missing; pip install "hfp[onnx]"') from error


def _export(model: nn.Module, inputs: Any, path: Path) -> None:
    with _quiet(), torch.no_grad():  # with gradients, torch.export takes some reshapes for views, which they are not
        try:
            torch.onnx.export(
                model,
                () if isinstance(inputs, Mapping) else tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,),
                path,
                kwargs=dict(inputs) if isinstance(inputs, Mapping) else None,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},) if isinstance(inputs, Tensor) else None,
            )
        except Exception as error:
            cause = error.__cause__ or error  # the exporter's own message only tells which step it was in
            said = printable((str(cause).splitlines() or [""])[0])
            raise InputError(
                f"{type(model).__name__} can't be exported to ONNX: {type(cause).__name__}: {said}"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter, which writes its progress to standard output, from saying anything inside."""
    talk, logger = io.StringIO(), logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
