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
    with pytest.raises(
        CriterionError, match="'variation' scores what a server knows from rounds of training; choose anoth"
    ):
        create("variation")
    with pytest.raises(CriterionError, match="'l1' is registered already"):
        register("l1", object, source="twice")
    with pytest.raises(CriterionError, match="needs is one of"):
        register("new", object, source="nowhere", needs="luck")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("group-fisher", {"draws": 1.5}, "draws must be a whole number; found 1.5"),
        ("group-fisher", {"joint": "no"}, "joint must be true or false; found 'no'"),
        ("sampled-fisher", {"seed": -1}, "seed must be at least 0; found -1"),
        ("group-fisher", {"draws": 0}, "draws must be at least 1; found 0"),
        ("group-fisher", {"fisher": "true"}, "unknown fisher 'true'; known: empirical, gauss-newton, off"),
        ("group-fisher", {"first_order": "both"}, "unknown first_order 'both'"),
        ("hutchinson", {"reduction": "median"}, "unknown reduction 'median'"),
        ("hutchinson", {"probes": 0}, "probes must be at least 1; found 0"),
        ("kronecker", {"fisher": "true"}, "unknown fisher 'true'; known: empirical, gauss-newton"),
        ("group-kl", {"classes": 1}, "classes must be at least 2; found 1"),
        ("group-kl", {"classes": 2.5}, "classes must be a whole number; found 2.5"),
    ],
)
def test_values_that_options_do_not_take_are_refused(name, options, message):
    with pytest.raises(CriterionError, match=message):
        create(name, **options)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(CriterionError, match="expected the name of a criterion, found None"):
        create(None)
