import math

import numpy as np
import torch

from mae_export.training.loss import normalise_patches, reconstruction_loss


def test_only_hidden_patches_count() -> None:
    patches = torch.zeros(2, 4, 3)
    predicted = torch.tensor([[9.0, 1.0, 9.0, 3.0], [2.0, 9.0, 9.0, 0.0]]).unsqueeze(-1).expand(2, 4, 3)
    ids_keep = torch.tensor([[2, 0], [1, 2]])
    loss = reconstruction_loss(predicted, patches, ids_keep, patch_normalised=False)
    assert loss.item() == (1 + 9 + 4 + 0) / 4


def test_the_gradient_reaches_hidden_patches_only() -> None:
    predicted = torch.ones(1, 3, 2, requires_grad=True)
    loss = reconstruction_loss(predicted, torch.zeros(1, 3, 2), torch.tensor([[1]]), patch_normalised=False)
    (gradient,) = torch.autograd.grad(loss, predicted)
    # d/dx of the mean over 2 patches of 2 values of x squared, at 1
    torch.testing.assert_close(gradient, torch.tensor([[[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]]))


def test_predicting_the_mean_costs_the_variance() -> None:
    patches = torch.tensor([-1.0, 3.0]).repeat(4).reshape(1, 1, 8).expand(1, 5, 8)
    loss = reconstruction_loss(torch.ones(1, 5, 8), patches, torch.tensor([[0]]), patch_normalised=False)
    assert loss.item() == 4.0


def test_normalised_target_has_unit_unbiased_variance() -> None:
    values = torch.tensor([[[1.0, 2.0, 6.0]]])
    # mean 3, unbiased variance (4 + 1 + 9) / 2 = 7
    expected = np.array([-2.0, -1.0, 3.0]) / math.sqrt(7 + 1e-6)
    np.testing.assert_allclose(normalise_patches(values).numpy()[0, 0], expected, rtol=1e-6)
    loss = reconstruction_loss(
        torch.zeros(1, 1, 3), values, torch.zeros(1, 0, dtype=torch.int64), patch_normalised=True
    )
    assert math.isclose(loss.item(), 14 / 7 / 3, rel_tol=1e-5)


def test_a_constant_patch_is_a_finite_target() -> None:
    assert normalise_patches(torch.full((1, 2, 12), 0.7)).abs().max() == 0
