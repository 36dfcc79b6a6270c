"""Structured pruning that can be undone, shared and federated.

The three packages also work alone. `hfp.importance` has the criteria, which score channels by what their removal does
to the loss. `hfp.reconstruct` has index maps, which record what a pruning removed, so that a compact model can be put
back into the full one. `hfp` itself prunes a model to a budget (`prune`) and runs federated experiments in which every
client trains a compact submodel (`simulate`).

To read the code, begin with `hfp.pruning` for one model, and with `hfp.federation` for many clients. `federation` says
what is run and leads through its rounds; the algorithms are in `methods`, one per file, and a client's work is in
`training`. `data` and `models` provide what is trained, and `costs` counts what it takes. `results` runs an experiment
in one call (`simulate`), and writes and reads run folders; `comparison` compares methods. `flower` runs the same
methods on Flower. `language` prunes language models in folders. `commands` is the command line. `settings` and `layers`
are leaves that the others read.

Names are loaded when they are first used, so that ``import hfp`` and ``hfp --help`` don't wait for torch.
"""

from __future__ import annotations

from hfp.lazy import lazily

TYPE_CHECKING = False  # typing's own is not loaded before the command handles signals

if TYPE_CHECKING:
    from hfp import importance, language, reconstruct
    from hfp.errors import InputError
    from hfp.federation.experiment import Experiment
    from hfp.federation.observer import Observer
    from hfp.federation.records import Run
    from hfp.language.hub import push_to_hub
    from hfp.language.loading import from_pretrained
    from hfp.models import create_model
    from hfp.pruning.budget import Budget
    from hfp.pruning.prune import prune
    from hfp.pruning.result import PruneResult
    from hfp.reconstruct import save_pruned
    from hfp.results.load import SavedRun, load_pruned, load_run, load_submodel
    from hfp.results.simulate import simulate
    from hfp.version import __version__ as __version__

__all__ = [
    "Budget",
    "Experiment",
    "InputError",
    "Observer",
    "PruneResult",
    "Run",
    "SavedRun",
    "create_model",
    "from_pretrained",
    "importance",
    "language",
    "load_pruned",
    "load_run",
    "load_submodel",
    "prune",
    "push_to_hub",
    "reconstruct",
    "save_pruned",
    "simulate",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "hfp.errors": "InputError",
        "hfp.federation.experiment": "Experiment",
        "hfp.federation.observer": "Observer",
        "hfp.federation.records": "Run",
        "hfp.language.hub": "push_to_hub",
        "hfp.language.loading": "from_pretrained",
        "hfp.models": "create_model",
        "hfp.pruning.budget": "Budget",
        "hfp.pruning.prune": "prune",
        "hfp.pruning.result": "PruneResult",
        "hfp.reconstruct": "save_pruned",
        "hfp.results.load": "SavedRun load_pruned load_run load_submodel",
        "hfp.results.simulate": "simulate",
        "hfp.version": "__version__",
    },
    modules=("importance", "language", "reconstruct"),
)
