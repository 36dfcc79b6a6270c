"""Group KL against its definition with every logit differentiated one sample at a time, float64."""

import pytest
import torch
from networks.criteria import data, gate_derivatives, groups, make
from torch.nn import functional

from hfp.importance import CriterionError, GroupFisherImportance, GroupKLImportance


def divergence(model, group, images, labels, classes):
    """The score by a loop over samples and channels, without the lumped rest."""
    jacobian = torch.stack(
        [gate_derivatives(model, group, lambda z, _, k=k: z[0, k], images, labels) for k in range(5)], 1
    )
    scores = []
    for channel in range(jacobian.shape[2]):
        total = 0
        for sample, image in enumerate(images):
            logits = model(image[None])[0].detach()
            leading = logits.topk(classes).indices
            moved = logits.clone()
            moved[leading] -= jacobian[sample, leading, channel]
            p, q = logits.softmax(0), moved.softmax(0)
            total += (q * (q.log() - p.log())).sum() / len(images)
        scores.append(total)
    return torch.stack(scores)


@pytest.mark.parametrize("classes", [2, 3, None])
@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_score_equals_the_definition(name, classes):
    model, (images, labels) = make(name), data()
    criterion = GroupKLImportance(classes)
    criterion.accumulate(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], functional.cross_entropy)
    for group in groups(model).values():
        expected = divergence(model, group, images, labels, classes or 5)
        torch.testing.assert_close(criterion(group), expected, rtol=1e-9, atol=1e-13)


def test_small_moves_give_half_the_gauss_newton_square():
    model, (images, labels) = make("residual"), data()
    with torch.no_grad():
        model.head.weight *= 1e-3
    exact, quadratic = GroupKLImportance(None), GroupFisherImportance("gauss-newton", draws=600)
    for criterion in (exact, quadratic):
        criterion.accumulate(model, [(images, labels)], functional.cross_entropy)
    group = groups(model)["side"]
    torch.testing.assert_close(exact(group), quadratic(group), rtol=0.15, atol=0)


def test_outputs_that_are_no_logits_are_refused():
    model, (images, _) = make("residual"), data()
    with pytest.raises(CriterionError, match=r"needs logits \[6, 2 or more\].*found a Tensor of .* and shape \[6\]"):
        GroupKLImportance().accumulate(
            model, [(images, None)], lambda output, _: output.sum(), forward=lambda model, batch: model(batch[0])[:, 0]
        )
