"""Export a compact model to ONNX and check the result. Needs the `onnx` extra."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from hfp.errors import InputError
from hfp.layers.calling import modes_kept

_TOLERANCE = 1e-3  # of the largest output: other kernels, another order of sums


def export_onnx(model: nn.Module, inputs: Tensor, path: Path) -> float:
    """Write `path` and compare ONNX Runtime's outputs with the model's, in evaluation mode.

    Args:
        model: on the CPU; left as it was.
        inputs: `[batch, channels, height, width]`; the exported model takes any batch.
        path: the ONNX file.

    Returns:
        The largest difference.

    Raises:
        InputError: the `onnx` extra is missing, the model can't be exported, or its exported form gives other outputs.
    """
    check_exporter()
    import onnxruntime

    with modes_kept(model):
        model.eval()
        with torch.no_grad():
            expected = model(inputs)
        _export(model, inputs, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    difference = float((torch.from_numpy(found) - expected).abs().max())
    if not difference <= _TOLERANCE * max(float(expected.abs().max()), 1.0):
        raise InputError(f"{path}: ONNX Runtime's outputs differ from the model's by {difference:.3g}")
    return difference


def check_exporter() -> None:
    """Raise an `InputError` if what exporting needs is not installed."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  (the exporter's own need)
    except ImportError as error:
        raise InputError(f'no export: {error.name} is missing; pip install "hfp[onnx]"') from error


def _export(model: nn.Module, inputs: Tensor, path: Path) -> None:
    talk = io.StringIO()  # the exporter writes its progress to standard output
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (inputs,),
                path,
                dynamo=True,
                external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} can't be exported to ONNX: {str(error).splitlines()[0]}"
            ) from error
