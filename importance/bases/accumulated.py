"""The base of diagonal criteria that take gradient and curvature from batches, whatever the estimator."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hfp.importance.bases.diagonal import DiagonalImportance
from hfp.importance.bases.from_data import FromData
from hfp.importance.capture.moments import WAY_OUT, GradientMoments
from hfp.importance.errors import CriterionError


class AccumulatedImportance(FromData[GradientMoments], DiagonalImportance):
    """A diagonal criterion whose gradient and curvature are means over all samples accumulated so far."""

    def __init__(self, form: str = "curvature", reduction: str = "sum") -> None:
        super().__init__(form, reduction)
        self._moments: GradientMoments | None = None

    @property
    def samples(self) -> int:
        """Return the number of samples accumulated so far."""
        return 0 if self._moments is None else self._moments.samples

    def reset(self) -> None:
        """Forget everything accumulated, for instance after a pruning step."""
        self._moments = None

    def state(self) -> dict[str, Tensor]:
        """Return everything accumulated as tensors by name, to send or to save; `load` takes it."""
        if self._moments is None:
            return {}
        parts = {"gradient": self._moments.gradient, "curvature": self._moments.curvature}
        named = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        return {"samples": torch.tensor(self.samples), **named}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Add a `state`, as `merge` adds another criterion.

        Raises:
            CriterionError: `state` is not the state of such a criterion, or it is of another model.
        """
        if "samples" not in state:
            raise CriterionError(f"this is not the state of a {type(self).__name__}: it has no 'samples'")
        parts = {
            part: {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
            for part in ("gradient", "curvature")
        }
        if not parts["gradient"] or parts["gradient"].keys() != parts["curvature"].keys():
            raise CriterionError(
                f"this is not the state of a {type(self).__name__}: gradients and curvatures differ in names"
            )
        self._add(GradientMoments(int(state["samples"]), parts["gradient"], parts["curvature"]))

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the mean gradient and the mean curvature of one parameter, each in its full shape."""
        if self._moments is None:
            raise CriterionError("nothing has been accumulated; call accumulate(model, batches, loss_fn) first")
        if name not in self._moments.gradient:
            path, dot, _ = name.rpartition(".")
            parts = ("parametrizations.weight.", "weight_g", "weight_v", "weight_orig")
            made_from = tuple(f"{path}{dot}{part}" for part in parts)
            if name.startswith(made_from) or any(key.startswith(made_from) for key in self._moments.gradient):
                raise CriterionError(
                    f"layer {path!r} computes its weight from other parameters, and a {type(self).__name__} has no "
                    f"estimates of {name!r}: {WAY_OUT}"
                )
            raise CriterionError(
                f"nothing was accumulated for parameter {name!r}: it is of another model, or of a layer that returns "
                "no tensor (a recurrent one), whose weights have no gradient per sample; put that into ignored_layers"
            )
        return self._moments.gradient[name] / self.samples, self._moments.curvature[name] / self.samples

    @property
    def _measured(self) -> GradientMoments:
        assert self._moments is not None
        return self._moments

    def _add(self, moments: GradientMoments) -> None:
        self._moments = moments if self._moments is None else self._moments.plus(moments)
