"""Server-side estimates and the scores from them, against loops over clients and entries."""

import pytest
import torch
from networks.criteria import group_of, make

from hfp.importance import CriterionError, Variation, VariationImportance


def clients(seed=0, shape=(3, 4), count=3):
    """(share, gradient, mask) per client; no client holds entry [0, 0]."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)[:count]
    made = []
    for share in shares:
        mask = torch.rand(shape, generator=generator) < 0.6
        mask[0, 0] = False
        made.append((share, torch.randn(shape, generator=generator, dtype=torch.float64), mask))
    return made


def sums(made):
    return (
        {"w": sum(share * gradient * mask for share, gradient, mask in made)},
        {"w": sum(share * gradient.square() * mask for share, gradient, mask in made)},
        {"w": sum(share * mask for share, _, mask in made)},
    )


def naive(made, entry):
    """(mean, mean of squares) over the clients that hold one entry."""
    holders = [(share, gradient[entry]) for share, gradient, mask in made if mask[entry]]
    total = sum(share for share, _ in holders)
    return (
        sum(share * value for share, value in holders) / total,
        sum(share * value**2 for share, value in holders) / total,
    )


def entries(made):
    covered = sums(made)[2]["w"] > 0
    return [tuple(entry) for entry in covered.nonzero().tolist()]


@pytest.mark.parametrize("estimator", ["fisher", "centered"])
def test_estimates_equal_a_loop_over_clients(estimator):
    made = clients()
    state = Variation(estimator).update(*sums(made))
    for entry in entries(made):
        mean, square = naive(made, entry)
        torch.testing.assert_close(state.gradient["w"][entry], mean)
        torch.testing.assert_close(state.curvature["w"][entry], square - (mean**2 if estimator == "centered" else 0))


def test_secant_is_the_positive_difference_quotient():
    first, second = clients(0), clients(1)
    before = {"w": torch.ones(3, 4, dtype=torch.float64)}
    after = {"w": before["w"] + 0.25}
    state = Variation("secant").update(*sums(first), before)
    assert not state.seen["w"].any()
    state = state.update(*sums(second), after)
    for entry in set(entries(first)) & set(entries(second)):
        expected = abs(naive(second, entry)[0] - naive(first, entry)[0]) / 0.25
        torch.testing.assert_close(state.curvature["w"][entry], expected)


def test_the_secant_of_an_entry_spans_the_rounds_in_which_nobody_trained_it():
    def round(gradient, held, at):
        value = torch.tensor([gradient * held], dtype=torch.float64)
        place = {"w": torch.tensor([at], dtype=torch.float64)}
        return {"w": value}, {"w": value.square()}, {"w": torch.tensor([held], dtype=torch.float64)}, place

    state = Variation("secant").update(*round(1.0, 1.0, at=2.0)).update(*round(9.0, 0.0, at=3.0))
    state = state.update(*round(4.0, 1.0, at=3.5))
    torch.testing.assert_close(state.curvature["w"], torch.tensor([3.0 / 1.5], dtype=torch.float64))


@pytest.mark.parametrize(("estimator", "kept"), [("fisher", False), ("centered", False), ("secant", True)])
def test_the_weights_are_kept_for_the_secant_alone(estimator, kept):
    weights = {"w": torch.ones(3, 4, dtype=torch.float64)}
    state = Variation(estimator).update(*sums(clients()), weights)
    assert (state.weights is not None) == kept
    weights["w"] += 1
    assert not kept or bool((state.weights["w"] == 1).all())


def test_entries_that_nobody_trained_keep_their_last_estimate():
    first, second = clients(0), clients(1, count=1)
    old = Variation().update(*sums(first))
    new = old.update(*sums(second))
    idle = sums(second)[2]["w"] == 0
    held_before = idle & (sums(first)[2]["w"] > 0)
    assert held_before.any()
    torch.testing.assert_close(new.curvature["w"][held_before], old.curvature["w"][held_before], rtol=0, atol=0)
    torch.testing.assert_close(new.gradient["w"][held_before], old.gradient["w"][held_before], rtol=0, atol=0)


def test_entries_never_trained_are_neither_favoured_nor_condemned():
    made = clients()
    state = Variation().update(*sums(made))
    known = state.curvature["w"][sums(made)[2]["w"] > 0]
    torch.testing.assert_close(state.curvature["w"][0, 0], known.mean())
    assert state.gradient["w"][0, 0] == 0


def test_smoothing_is_a_running_average_that_starts_at_the_first_estimate():
    first, second = clients(0), clients(1)
    state = Variation(smoothing=0.75).update(*sums(first)).update(*sums(second))
    for entry in set(entries(first)) & set(entries(second)):
        expected = 0.75 * naive(first, entry)[1] + 0.25 * naive(second, entry)[1]
        torch.testing.assert_close(state.curvature["w"][entry], expected)


def estimates(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    made = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in model.named_parameters()
    }
    ones = {name: torch.ones_like(value) for name, value in made.items()}
    return Variation().update(made, {name: value.square() for name, value in made.items()}, ones)


@pytest.mark.parametrize("form", ["curvature", "paper", "taylor"])
def test_score_of_the_residual_stream_sums_every_weight_of_a_channel(form):
    model = make("residual")
    state = estimates(model)
    weights = dict(model.named_parameters())

    def value(name):
        g, h, w = state.gradient[name], state.curvature[name], weights[name].detach()
        return {"curvature": h * w**2, "paper": g * w + h * w**2, "taylor": -g * w + h * w**2 / 2}[form]

    expected = torch.stack(
        [
            sum(value(name)[c].sum() for name in ["stem.weight", "stem.bias", "norm.weight", "norm.bias"])
            + sum(value(name)[c].sum() for name in ["b.weight", "b.bias", "side.weight", "side.bias"])
            + sum(value(name)[:, c].sum() for name in ["a.0.weight", "side.weight", "head.weight"])
            - value("side.weight")[c, c].sum()  # a row and a column have it, and it goes once
            for c in range(6)
        ]
    )
    torch.testing.assert_close(VariationImportance(state, form)(group_of(model, "stem")), expected)


def test_layers_of_a_group_are_reduced_as_asked():
    model = make("residual")
    state, group = estimates(model), group_of(model, "a.0")
    weights = {name: p.detach() for name, p in model.named_parameters()}
    values = {name: state.curvature[name] * weights[name].square() for name in weights}
    layers = torch.stack(
        [
            values["a.0.weight"].sum((1, 2, 3)),
            values["a.1.weight"] + values["a.1.bias"],
            values["b.weight"].sum((0, 2, 3)),
        ]
    )
    for reduction, expected in [
        ("sum", layers.sum(0)),
        ("mean", layers.mean(0)),
        ("max", layers.amax(0)),
        ("first", layers[0]),
    ]:
        torch.testing.assert_close(VariationImportance(state, reduction=reduction)(group), expected)


def test_refusals():
    model = make("residual")
    group = group_of(model, "stem")
    with pytest.raises(CriterionError, match="holds no round yet"):
        VariationImportance(Variation())(group)
    with pytest.raises(CriterionError, match="knows nothing of parameter 'side.weight'"):
        VariationImportance(Variation().update(*sums(clients())))(group)
    with pytest.raises(CriterionError, match="estimator is one of"):
        Variation("hessian")
    with pytest.raises(CriterionError, match=r"smoothing is a share in \[0, 1\)"):
        Variation(smoothing=1.0)
    with pytest.raises(CriterionError, match="needs the weights"):
        Variation("secant").update(*sums(clients()))
    broken = sums(clients())
    broken[1]["w"][1, 1] = float("nan")
    with pytest.raises(CriterionError, match=r"square_sum\['w'\] holds values that are not finite"):
        Variation().update(*broken)
    with pytest.raises(CriterionError, match="coverage and the estimates differ in parameters: w"):
        Variation().update(broken[0], broken[0], {})
