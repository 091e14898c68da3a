"""Handwritten digits of real people, made harder: moved by up to two pixels, and noisy."""

from __future__ import annotations

import attrs
import torch
from sklearn.datasets import load_digits
from torch import Tensor

TRAINED_ON = 1000
"""Of 1,797 digits; the others are the test set."""
MOVED_BY = 2
"""Pixels, of 8, in each direction at most."""
NOISE = 0.15
"""Standard deviation; ink is 1."""
VIEWS = 4
"""How often each digit of the test set is disturbed."""


@attrs.frozen(eq=False)
class Digits:
    """Images of shape (N, 1, 8, 8) from 0 to 1, with their labels; those of the test set are disturbed."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int) -> Digits:
    """Split the data set at random, and disturb the test set."""
    found = load_digits()
    images, labels = torch.tensor(found.images / 16).float().unsqueeze(1), torch.tensor(found.target)
    generator = torch.Generator().manual_seed(seed)
    trained, tested = torch.randperm(len(images), generator=generator).split(
        [TRAINED_ON, len(images) - TRAINED_ON]
    )
    test_images = disturbed(images[tested].repeat(VIEWS, 1, 1, 1), generator)
    return Digits(images[trained], labels[trained], test_images, labels[tested].repeat(VIEWS))


def disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by some pixels, and add noise to all of it."""
    count, size = len(images), images.shape[-1]
    padded = torch.nn.functional.pad(images.squeeze(1), [MOVED_BY] * 4)
    starts = torch.randint(0, 2 * MOVED_BY + 1, (2, count, 1), generator=generator)
    rows, columns = starts + torch.arange(size)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    noise = torch.randn(moved.shape, generator=generator)
    return (moved + NOISE * noise).unsqueeze(1)
