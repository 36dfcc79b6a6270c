"""Group loss against its definition with every logit differentiated one sample at a time, float64."""

import pytest
import torch
from networks.criteria import data, gate_derivatives, groups, make
from torch.nn import functional

from hfp.importance import CriterionError, GroupKLImportance, GroupLossImportance


def jacobian(model, group, images, labels):
    return torch.stack([gate_derivatives(model, group, lambda z, _, k=k: z[0, k], images, labels) for k in range(5)], 1)


def added_loss(model, images, targets, change):
    """Mean cross-entropy after a change of the logits `[samples, classes]`, less that before."""
    logits = model(images).detach()
    return functional.cross_entropy(logits - change, targets) - functional.cross_entropy(logits, targets)


def soft(labels):
    return 0.7 * functional.one_hot(labels, 5).double() + 0.06


@pytest.mark.parametrize("kind", [lambda labels: labels, soft], ids=["labels", "probabilities"])
@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_score_of_one_channel_alone(name, kind):
    model, (images, labels) = make(name), data()
    criterion = GroupLossImportance(classes=None, joint=False)
    criterion.accumulate(
        model, [(images[:4], kind(labels[:4])), (images[4:], kind(labels[4:]))], functional.cross_entropy
    )
    for group in groups(model).values():
        moves = jacobian(model, group, images, labels)
        expected = [added_loss(model, images, kind(labels), moves[:, :, c]) for c in range(moves.shape[2])]
        torch.testing.assert_close(criterion(group), torch.stack(expected), rtol=1e-8, atol=1e-12)


def test_classes_that_are_not_differentiated_stay():
    model, (images, labels) = make("residual"), data()
    criterion = GroupLossImportance(classes=2, joint=False)
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    group = groups(model)["side"]
    moves = jacobian(model, group, images, labels)
    rank = model(images).detach().softmax(1) + functional.one_hot(labels, 5)
    held = torch.ones_like(rank, dtype=torch.bool).scatter(1, rank.topk(2, 1).indices, False)
    moves[held] = 0
    expected = [added_loss(model, images, labels, moves[:, :, c]) for c in range(moves.shape[2])]
    torch.testing.assert_close(criterion(group), torch.stack(expected), rtol=1e-8, atol=1e-12)


def test_probabilities_that_do_not_add_up_to_one_by_rounding_give_finite_scores():
    model, (images, labels) = make("residual"), data()
    targets = torch.tensor([0.9, 0.7, 0.6, 0.4, 0.2]).expand(len(labels), 5)
    targets = (targets / targets.sum(1, keepdim=True)).roll(1, 1) * (1 - 1e-7)
    criterion = GroupLossImportance(classes=None)
    criterion.accumulate(model, [(images, targets)], functional.cross_entropy)
    for group in groups(model).values():
        assert torch.isfinite(criterion(group)).all()


def naive_joint(moves, cost):
    """Greedy order one channel at a time, and what each removal adds, never less than the one before."""
    left, gone, order, scores = list(range(moves.shape[2])), torch.zeros_like(moves[:, :, 0]), [], []
    while left:
        costs = [cost(gone + moves[:, :, c]) for c in left]
        chosen = left.pop(int(torch.stack(costs).argmin()))
        added = cost(gone + moves[:, :, chosen]) - cost(gone)
        scores.append(max(added, scores[-1]) if scores else added)
        gone = gone + moves[:, :, chosen]
        order.append(chosen)
    return order, torch.stack(scores)


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_joint_scores_are_what_a_greedy_removal_adds(name):
    model, (images, labels) = make(name), data()
    criterion = GroupLossImportance(classes=None)
    criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    for group in groups(model).values():
        moves = jacobian(model, group, images, labels)
        order, expected = naive_joint(moves, lambda change: added_loss(model, images, labels, change))
        found = criterion(group)
        assert found.argsort().tolist() == order
        torch.testing.assert_close(found[order], expected, rtol=1e-5, atol=2e-6 * expected.abs().max().item())


def test_joint_scores_of_many_channels_are_found_in_few_rounds():
    from hfp.importance.bases.joint import ROUNDS, joint_scores

    moves = torch.rand(3, 2, 5 * ROUNDS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls = []

    def cost(change):
        calls.append(change.shape[2])
        return change.square().sum(1).mean(0)

    scores = joint_scores(moves, cost)
    assert len(calls) <= 2 * ROUNDS + 1
    assert len(scores.unique()) == 5 * ROUNDS
    assert (scores.sort().values.diff() > 0).all()


def test_repaired_gates_leave_out_the_mean():
    model, (images, labels) = make("flat"), data()
    plain, repaired = (GroupKLImportance(None, repaired=value) for value in (False, True))
    for criterion in (plain, repaired):
        criterion.accumulate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], functional.cross_entropy)
    group = groups(model)["hidden"]
    read = []
    handle = model.head.register_forward_hook(lambda module, args, output: read.append(args[0].detach()))
    model(images)
    handle.remove()
    mean = read[0].mean(0)
    moves = repaired.gate_gradients(group)
    order = model(images).detach().topk(5, 1).indices
    expected = (read[0] - mean)[:, None, :] * model.head.weight.detach()[order]
    torch.testing.assert_close(moves, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(moves, plain.gate_gradients(group))


def test_targets_that_are_no_classes_are_refused():
    model, (images, labels) = make("residual"), data()
    for target, message in [
        (labels.double(), r"labels \[6\] or probabilities \[6, 5\] as targets, not torch.float64 \[6\]"),
        (None, "not NoneType"),
        (labels + 3, "labels run from 3 to 7, and there are 5 logits|labels run from"),
    ]:
        with pytest.raises(CriterionError, match=message):
            GroupLossImportance().accumulate(model, [(images, target)], functional.cross_entropy)


def test_targets_that_are_no_probabilities_are_refused():
    model, (images, labels) = make("residual"), data()
    one_hot = functional.one_hot(labels, 5).double()
    for targets in (one_hot * 3 - 1, one_hot + one_hot.roll(1, 1), one_hot / one_hot[:, :1]):
        with pytest.raises(CriterionError, match="probabilities that add up to 1 in each sample.*take softmax"):
            GroupLossImportance().accumulate(model, [(images, targets)], functional.cross_entropy)
    GroupLossImportance().accumulate(model, [(images, one_hot.half())], functional.cross_entropy)
