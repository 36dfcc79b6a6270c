"""Find criteria by name.

Names, and what each criterion needs, are known before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hfp.importance.errors import CriterionError

if TYPE_CHECKING:
    import torch_pruning as tp

NEEDS = ("nothing", "data", "variation")


@dataclass(frozen=True)
class Criterion:
    """The facts about a criterion that are known before one is made.

    Args:
        name: the name that `create` takes.
        source: the paper or project that the criterion is from.
        needs: "nothing" (the weights suffice), "data" (it has to see batches and a loss first) or "variation" (it reads
            a server's `Variation`).

    >>> from hfp.importance import describe
    >>> describe("l1")
    Criterion(name='l1', source='Li et al., Pruning Filters, ICLR 2017', needs='nothing')
    """

    name: str
    source: str
    needs: str


_ENTRIES: dict[str, tuple[Criterion, Callable[..., Any] | str]] = {}


def register(name: str, factory: Callable[..., Any] | str, *, source: str, needs: str = "nothing") -> None:
    """Make `create(name, **options)` call `factory(**options)`.

    Args:
        name: a name that is not taken.
        factory: a class or function that returns a torch-pruning Importance. A text ``module:name`` says where it is;
            it is then loaded when it is first used.
        source: the paper or project that the criterion is from.
        needs: "nothing" (the default: the weights suffice), "data" or "variation"; see `Criterion`.

    Raises:
        CriterionError: the name is taken, or `needs` is none of "nothing", "data" and "variation".

    >>> from hfp.importance import RandomImportance, names, register
    >>> register("coin", RandomImportance, source="an example")
    >>> "coin" in names()
    True
    """
    if name in _ENTRIES:
        raise CriterionError(f"criterion {name!r} is registered already ({_ENTRIES[name][0].source})")
    if needs not in NEEDS:
        raise CriterionError(f"needs is one of {', '.join(NEEDS)}, not {needs!r}")
    _ENTRIES[name] = Criterion(name, source, needs), factory


def names() -> tuple[str, ...]:
    """Return the names of the registered criteria, in alphabetical order.

    >>> from hfp.importance import names
    >>> names()[:3]
    ('bn-scale', ...)
    """
    return tuple(sorted(_ENTRIES))


def describe(name: str) -> Criterion:
    """Return the source and the needs of a criterion.

    Args:
        name: a registered name.

    Raises:
        CriterionError: the name is unknown; the message has the nearest known ones.

    >>> from hfp.importance import describe
    >>> describe("kronecker").needs
    'data'
    """
    return _entry(name)[0]


def create(name: str, /, **options: Any) -> tp.importance.Importance:
    """Make a new criterion by its name.

    Args:
        name: a registered name (`names`).
        options: the criterion's own options. Every criterion also takes `normalise` and `power`, which wrap it in
            `ScaledImportance`.

    Returns:
        A torch-pruning Importance.

    Raises:
        CriterionError: the name is unknown, the criterion does not take one of the options or its value, or it needs a
            server's `Variation` and gets none.

    >>> from hfp.importance import create
    >>> create("group-fisher", fisher="gauss-newton").fisher
    'gauss-newton'
    """
    factory = factory_of(name)
    scale = {key: options.pop(key) for key in ("normalise", "power") if key in options}
    from hfp.importance.bases.scaled import ScaledImportance

    try:
        made = factory(**options)
        return ScaledImportance(made, **scale) if scale else made
    except TypeError as error:
        if describe(name).needs == "variation" and not options:
            raise CriterionError(
                f"criterion {name!r} scores what a server knows from rounds of training; choose another one here, or "
                "give what is known as variation=Variation(...)"
            ) from error
        raise CriterionError(f"criterion {name!r} can't be made with options {sorted(options)}: {error}") from error


def factory_of(name: str) -> Callable[..., Any]:
    """Return the class or function that makes a criterion.

    Args:
        name: a registered name.

    Raises:
        CriterionError: the name is unknown.

    >>> from hfp.importance import factory_of
    >>> factory_of("kronecker").__name__
    'KroneckerImportance'
    """
    factory = _entry(name)[1]
    if not isinstance(factory, str):
        return factory
    module, _, attribute = factory.partition(":")
    return getattr(import_module(module), attribute)


def place_of(name: str) -> str | None:
    """Return the ``module:name`` of what makes a criterion, or None where it was registered itself.

    Args:
        name: a registered name.

    Raises:
        CriterionError: the name is unknown.

    >>> from hfp.importance.registry import place_of
    >>> place_of("l1")
    'hfp.importance.criteria.from_torch_pruning:l1'
    """
    factory = _entry(name)[1]
    return factory if isinstance(factory, str) else None


def _entry(name: str) -> tuple[Criterion, Callable[..., Any] | str]:
    if not isinstance(name, str):
        raise CriterionError(f"expected the name of a criterion, found {name!r}")
    if name not in _ENTRIES:
        near = get_close_matches(name, _ENTRIES, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names())}"
        raise CriterionError(f"unknown criterion {name!r}; {hint}")
    return _ENTRIES[name]


def _bundled(name: str, place: str, source: str, needs: str = "nothing") -> None:
    register(name, f"hfp.importance.criteria.{place}", source=source, needs=needs)


_bundled("variation", "variation:VariationImportance", "CA-HFP, arXiv 2603.12591", "variation")
_bundled("group-fisher", "group_fisher:GroupFisherImportance", "Liu et al., Group Fisher Pruning, ICML 2021", "data")
_bundled("group-kl", "group_kl:GroupKLImportance", "linearised gates, exact divergence; this project", "data")
_bundled("group-loss", "group_loss:GroupLossImportance", "linearised gates, greedy over a group; this project", "data")
_bundled(
    "kronecker", "kronecker:KroneckerImportance", "K-FAC, arXiv 1503.05671, greedy over a group; this project", "data"
)
_bundled("empirical-fisher", "empirical_fisher:EmpiricalFisherImportance", "Theis et al., arXiv 1801.05787", "data")
_bundled("sampled-fisher", "sampled_fisher:SampledFisherImportance", "Martens, arXiv 1412.1193", "data")
_bundled("hutchinson", "hutchinson:HutchinsonImportance", "Yao et al., AdaHessian, arXiv 2006.00719", "data")
_bundled("l1", "from_torch_pruning:l1", "Li et al., Pruning Filters, ICLR 2017")
_bundled("l2", "from_torch_pruning:l2", "Fang et al., DepGraph, CVPR 2023")
_bundled("random", "shipped:RandomImportance", "uniform, seeded")
_bundled("bn-scale", "from_torch_pruning:bn_scale", "Liu et al., Network Slimming, ICCV 2017")
_bundled("lamp", "from_torch_pruning:lamp", "Lee et al., LAMP, ICLR 2021")
_bundled("fpgm", "from_torch_pruning:fpgm", "He et al., Geometric Median, CVPR 2019")
_bundled("taylor", "shipped:TaylorImportance", "Molchanov et al., CVPR 2019", "data")
_bundled("hessian", "shipped:HessianImportance", "LeCun et al., Optimal Brain Damage, 1989, in torch-pruning", "data")
