"""Operators between two static layers, on the runtime; the kit tries all of them, here is a sample."""

from __future__ import annotations

import attrs
import pytest

from torchquilt.testing.between import IMAGES, MATRICES, Operators, differences
from torchquilt.testing.subject import Subject, named

SUBJECT: Subject = attrs.evolve(named("torchquilt_xnnpack:XNNPACKQuantizer"), name="xnnpack")
#: Joined, moved and cut; decomposed into what the delegate takes as integers; a product that it refuses.
SAMPLE = Operators(
    (
        "hstack",
        "column_stack of vectors",
        "cat with an empty one",
        "transposed and flattened",
        "swapaxes",
        "unbind",
        "clamp_min",
        "rsub",
        "lerp",
        "flip",
        "matmul",
    )
)
SAMPLE_OF_IMAGES = Operators(
    (
        "shuffle by hand",
        "pixel_shuffle",
        "dstack of images",
        "windows",
        "mish of an image",
        "attention of an image to itself",
    )
)


def test_the_list_is_long_enough() -> None:
    """About 150 operators, each under one name."""
    assert len(MATRICES) + len(IMAGES) > 150
    assert MATRICES.keys().isdisjoint(IMAGES)


@pytest.mark.long
def test_operators_of_matrices_run_as_the_ledger_says() -> None:
    """Nothing contradicts the ledger, and program and quantized model agree."""
    assert list(differences(SUBJECT, "executorch", SAMPLE)) == []


@pytest.mark.long
def test_operators_of_images_run_as_the_ledger_says() -> None:
    """Likewise, for what stands between convolutions."""
    assert list(differences(SUBJECT, "executorch", SAMPLE_OF_IMAGES)) == []
