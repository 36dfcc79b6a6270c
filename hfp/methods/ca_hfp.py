"""CA-HFP: curvature-aware heterogeneous federated pruning with model reconstruction (arXiv 2603.12591)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from torch import nn

from hfp.importance import Variation, VariationImportance
from hfp.methods.blocks.calibration import calibrated
from hfp.methods.blocks.momentum import server_momentum_step
from hfp.methods.blocks.options import calibration_setting, server_momentum_setting
from hfp.methods.blocks.pseudo_gradients import PseudoGradients
from hfp.methods.blocks.real import check_real
from hfp.methods.blocks.selection import Scores, check_counts, check_own_weights, keep_best, keep_random, scores_of
from hfp.methods.interface.base import Method
from hfp.methods.interface.client_context import ClientContext
from hfp.methods.interface.registry import register
from hfp.methods.interface.values import Client, MethodContext, ServerState, State, Task, Update
from hfp.reconstruct import Aggregator, Plan
from hfp.seeds import generator
from hfp.settings import setting
from hfp.training.local_step import Objective

FORMS: Mapping[str, str] = MappingProxyType(
    {"curvature": "h w²", "paper": "g w + h w², the paper's eq. 15", "taylor": "-g w + h w² / 2, the paper's eq. 14"}
)
ESTIMATORS: Mapping[str, str] = MappingProxyType(
    {
        "fisher": "the mean square of the clients' pseudo-gradients",
        "centered": "their spread around the mean",
        "secant": "the change of their mean from round to round over that of the weights",
    }
)
FILLING_RULES: Mapping[str, str] = MappingProxyType(
    {
        "fill": "with the global value, as in the paper",
        "holders": "not, so that the mean is over the clients that hold it",
    }
)


@dataclass(frozen=True)
class CAHFPState:
    """What the server remembers between rounds.

    Args:
        variation: the estimates of gradient and curvature.
        scores: the channels' scores, None until warm-up is over.
        velocity: the velocity of the global parameters.
        shrink_decay: by which share shrinking becomes less from round to round, None until a client has replied.
    """

    variation: Variation
    scores: Scores | None = None
    velocity: State = field(default_factory=dict)
    shrink_decay: float | None = None


@register
@dataclass(frozen=True)
class CAHFP(Method):
    """CA-HFP trains random submodels at first, and then those channels whose removal would cost the most loss.

    Entries that few clients train shrink. A submodel learns to do without what its client does not hold, and what
    nobody trains is noise in the full model. So a round subtracts the share ``λ`` (`shrink`) of the perturbation
    ``e_t = Σ_k p_k (1 - m_k) w_t`` from the global parameters. With the rule ``fill``, a client then counts with
    ``(1 - λ) w_t`` for what it did not hold: ``λ = 0`` is the paper's reconstruction, and ``λ = 1`` leaves it out.

    Shrinking becomes less from round to round (`shrink_decays`), because what some clients trained serves the others
    too if these are alike. The fewer channels are held at all, the more is lost by shrinking those that some clients
    hold. In round ``t`` the share is ``λ (1 - A u)^t``, where ``A`` is the clients' agreement and ``u`` the share of
    the entries that nobody holds. Both are measured in the first round (`PseudoGradients`).

    Estimates take the memory of two models at the server, or of three with the secant, and momentum that of one more.
    They cost the clients nothing.
    `hfp.methods.ca_hfp_paper` is the paper's own form.

    Source: arXiv 2603.12591, section Methods; the shrinking, the momentum and the calibrated loss are this project's.
    """

    name: ClassVar[str] = "ca-hfp"
    source: ClassVar[str] = "arXiv 2603.12591"
    summary: ClassVar[str] = (
        "each client trains the channels whose removal would cost most; entries that few clients train shrink"
    )

    warmup: int = setting(
        1,
        "Masks are random for this many rounds, and until there is an estimate.",
        within="[1, inf)",
        reason="a score needs a round to come from",
        unit="rounds",
    )
    nested: bool = setting(True, "Random masks follow one order of the channels for all clients and rounds.")
    form: str = setting("curvature", "A channel is scored by this sum over its weights.", choices=FORMS)
    estimator: str = setting(
        "fisher", "The curvature h is estimated from model variations in this way.", choices=ESTIMATORS
    )
    smoothing: float = setting(0.5, "This share of the last round's estimate stays.", within="[0, 1)")
    rule: str = setting(
        "holders", "An entry that a client does not hold enters the mean in this way.", choices=FILLING_RULES
    )
    explore: float = setting(
        0.0, "This share of a client's channels is drawn from those that do not score best.", within="[0, 1)"
    )
    shrink: float = setting(
        0.4, "A round shrinks an entry by this share times the weight of the clients that lack it.", within="[0, 1]"
    )
    shrink_decays: bool = setting(True, "Shrinking becomes less from round to round, as far as the clients agree.")
    server_momentum: float = server_momentum_setting(0.5)
    calibration: float = calibration_setting(0.05)

    def check(self, context: MethodContext) -> None:
        """Refuse ratios that empty a coupled group, weights that layers compute, and complex parameters."""
        check_counts(context)
        check_real(self.name, context)
        check_own_weights(self.name, context)

    def start(self, context: MethodContext, weights: State) -> ServerState:
        """Start without an estimate."""
        variation = Variation(estimator=self.estimator, smoothing=self.smoothing)
        return ServerState(round=0, weights=weights, method_state=CAHFPState(variation))

    def plan(self, context: MethodContext, state: ServerState, client: Client) -> Plan:
        """Plan random channels during warm-up and the best by score after it, as many as the client's ratio leaves."""
        groups, scores = context.groups, state.method_state.scores
        drawn = generator(context.seed, "mask", state.round, client.index)
        if scores is not None:
            return keep_best(groups, client.ratio, scores, self.explore, drawn)
        return keep_random(groups, client.ratio, generator(context.seed, "mask") if self.nested else drawn)

    def objective(self, local: ClientContext, task: Task, model: nn.Module) -> Objective:
        """Minimise calibrated cross-entropy, whose calibration grows with the number of local steps."""
        return calibrated(local, self.calibration)

    def collect(self, context: MethodContext, state: ServerState) -> VariationCollector:
        """Average the submodels, and estimate ``g`` and ``h`` on the way."""
        return VariationCollector(self, context, state)

    def score(self, context: MethodContext, variation: Variation, weights: State) -> Scores:
        """Estimate how much loss the removal of each channel would cost, by coupled group."""
        return scores_of(context.groups, context.model, VariationImportance(variation, form=self.form), weights)

    def phase(self, state: ServerState) -> str:
        """Return ``random`` while masks are random, and ``score`` after that."""
        return "random" if state.method_state.scores is None else "score"


class VariationCollector:
    """Aggregates submodels one at a time, and estimates gradient and curvature from their pseudo-gradients."""

    def __init__(self, method: CAHFP, context: MethodContext, state: ServerState) -> None:
        self._method, self._context, self._state = method, context, state
        self._parameters = {name: state.weights[name] for name in context.parameters}
        self._aggregator = Aggregator(state.weights, rule=method.rule)
        self._gradients = PseudoGradients(self._parameters)

    def add(self, update: Update) -> None:
        """Fold one client's update in."""
        weight = update.client.samples
        self._aggregator.add(update.reply.tensors, update.task.index_map, weight=weight)
        trained_part = self._method.trained_part(self._context, self._state, update)
        self._gradients.add(trained_part, weight, update.step_size * update.reply.steps)

    def finish(self) -> ServerState:
        """Return the next state: new weights, new estimates and, once warm-up is over, new scores."""
        state, method = self._state, self._method
        coverage = self._gradients.coverage()
        variation = state.method_state.variation.update(
            gradient_sum=self._gradients.gradient(),
            square_sum=self._gradients.square(),
            coverage=coverage,
            weights=self._parameters,
        )
        weights, velocity = server_momentum_step(
            state.weights,
            self._aggregator.finish(),
            state.method_state.velocity,
            method.server_momentum,
            self._parameters,
        )
        shrink_decay = (
            self._shrink_decay() if state.method_state.shrink_decay is None else state.method_state.shrink_decay
        )
        shrink = method.shrink * (1 - shrink_decay) ** state.round
        for name in self._context.trained:
            weights[name] -= shrink * (1 - coverage[name]) * self._parameters[name]
        weights = self._context.shared(weights)
        estimated = any(bool(seen.any()) for seen in (variation.seen or {}).values())  # the secant needs two rounds
        warm = estimated and state.round + 1 >= method.warmup
        scores = method.score(self._context, variation, weights) if warm else None
        return ServerState(state.round + 1, weights, CAHFPState(variation, scores, velocity, shrink_decay))

    def _shrink_decay(self) -> float:
        return self._gradients.agreement() * self._gradients.unheld() if self._method.shrink_decays else 0.0
