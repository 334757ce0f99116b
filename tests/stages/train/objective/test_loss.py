"""Noise is mixed in along a straight line; losses follow their closed forms."""

from __future__ import annotations

import pytest
import torch

from qedit.stages.train.objective.loss import noised, sample_losses


def test_noise_is_mixed_in_along_a_straight_line() -> None:
    clean, noise = torch.full((2, 3, 2, 2), 10.0), torch.full((2, 3, 2, 2), -2.0)
    mixed = noised(clean, noise, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(mixed[0], torch.full((3, 2, 2), 7.0))
    torch.testing.assert_close(mixed[1], torch.full((3, 2, 2), -2.0))


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("l2", [(9 + 1) / 2, 0.25]),
        (
            "huber",
            [(0.2 * (9.01**0.5 - 0.1) + 0.2 * (1.01**0.5 - 0.1)) / 2, 0.2 * (0.26**0.5 - 0.1)],
        ),
        ("smooth_l1", [(2 * (9.01**0.5 - 0.1) + 2 * (1.01**0.5 - 0.1)) / 2, 2 * (0.26**0.5 - 0.1)]),
    ],
)
def test_losses_are_means_of_their_closed_forms(loss_type: str, expected: list[float]) -> None:
    predicted = torch.tensor([[3.0, -1.0], [0.5, 0.5]]).view(2, 1, 1, 2)
    losses = sample_losses(predicted, torch.zeros_like(predicted), loss_type=loss_type, huber_c=0.1)
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_the_loss_is_taken_in_float32() -> None:
    predicted = torch.full((1, 1, 1, 3), 1.0, dtype=torch.bfloat16)
    velocity = torch.full((1, 1, 1, 3), 1.001)
    losses = sample_losses(predicted, velocity)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("loss_type", ["l2", "huber", "smooth_l1"])
def test_a_mask_weighs_the_errors_and_is_normalised_by_its_sum(loss_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 3, 4, 4, generator=generator)
    nothing = torch.zeros_like(predicted)
    pointwise = torch.stack(
        [
            sample_losses(one.view(-1, 1, 1, 1), torch.zeros(48, 1, 1, 1), loss_type=loss_type)
            for one in predicted
        ]
    ).view(2, 3, 4, 4)
    weights = torch.rand(2, 1, 4, 4, generator=generator)
    losses = sample_losses(predicted, nothing, loss_type=loss_type, weights=weights)
    for place in range(2):
        mask = weights[place].expand(3, 4, 4)
        expected = (mask * pointwise[place]).sum() / mask.sum()
        torch.testing.assert_close(losses[place], expected)
    same = sample_losses(predicted, nothing, loss_type=loss_type, weights=0.2 * weights)
    torch.testing.assert_close(same, losses)
    half = torch.zeros(2, 1, 4, 4)
    half[..., :2] = 1
    left = sample_losses(predicted[..., :2], nothing[..., :2], loss_type=loss_type)
    torch.testing.assert_close(
        sample_losses(predicted, nothing, loss_type=loss_type, weights=half), left
    )
