"""Criteria by name."""

import pytest
import torch_pruning as tp

from hfp.importance import CriterionError, Variation, create, describe, names, register


def test_names_are_those_promised_and_describe_knows_them():
    assert set(names()) >= {
        *("variation", "group-fisher", "group-kl", "group-loss", "empirical-fisher", "sampled-fisher", "hutchinson"),
        "kronecker",
        *("l1", "l2", "random", "bn-scale", "lamp", "fpgm", "taylor", "hessian"),
    }
    for name in names():
        info = describe(name)
        assert info.name == name
        assert info.source
        assert info.needs in ("nothing", "data", "variation")


@pytest.mark.parametrize("name", names())
def test_every_criterion_is_an_importance_and_says_what_it_needs(name):
    options = {"variation": Variation()} if describe(name).needs == "variation" else {}
    criterion = create(name, **options)
    assert isinstance(criterion, tp.importance.Importance)
    assert hasattr(criterion, "accumulate") == (describe(name).needs == "data")


def test_refusals_name_the_nearest():
    with pytest.raises(CriterionError, match="unknown criterion 'group-fischer'; did you mean group-fisher"):
        create("group-fischer")
    with pytest.raises(CriterionError, match="unknown criterion 'zzz'; known: bn-scale, .*variation"):
        describe("zzz")
    with pytest.raises(CriterionError, match=r"'l1' can't be made with options \['sparsity'\]"):
        create("l1", sparsity=3)
    with pytest.raises(CriterionError, match="'l1' is registered already"):
        register("l1", object, source="twice")
    with pytest.raises(CriterionError, match="needs is one of"):
        register("new", object, source="nowhere", needs="luck")
