"""A source narrows, resizes and names what its reader reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mosaickd.data.source import ImageSet, Source
from mosaickd.errors import UserError


def reader(*, root: Path, split: str, image_size: int) -> ImageSet:
    """Forty 8x8 images of four classes; an image's pixels all hold its index."""
    count = 40 if split == "train" else 12
    index = torch.arange(count)
    images = index.to(torch.uint8)[:, None, None, None].expand(count, 3, 8, 8).contiguous()
    return ImageSet(images, index % 4, ["ant", "bee", "cat", "dog"])


def source(**settings: Any) -> Source:
    usual: dict[str, Any] = {
        "name": "toy", "reader": reader, "root": "nowhere", "image_size": 8,
        "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    return Source(**usual | settings)


def test_classes_are_relabelled_in_the_order_asked_for() -> None:
    images = source(classes=[3, 1]).load("train")
    assert images.classes == ["dog", "bee"]
    index = images.images[:, 0, 0, 0].long()
    assert torch.equal(images.labels, torch.where(index % 4 == 3, 0, 1))
    assert len(images) == 20
    assert images.images.is_contiguous()


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ([0, 120], "classes of toy: index 120 is out of range 0..3"),
        ([-1], "classes of toy: index -1 is out of range 0..3"),
        ([2, 2], "index 2 stands there twice"),
        (["cat"], "'cat' is not a class index"),
    ],
)
def test_impossible_classes(classes: list[Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        source(classes=classes).load("test")


def test_limit_is_a_fixed_sample_of_the_training_images_in_their_order() -> None:
    images = source(limit=10).load("train")
    index = images.images[:, 0, 0, 0].long()
    assert index.tolist() == [1, 4, 6, 7, 10, 15, 16, 18, 25, 29], "always these, in their order"
    assert torch.equal(images.labels, index % 4)
    assert len(source(limit=10).load("test")) == 12
    more = source(limit=15).load("train").images[:, 0, 0, 0]
    assert set(index.tolist()) < set(more.tolist()), "a larger limit contains a smaller one's"


def test_limit_counts_after_classes() -> None:
    assert len(source(classes=[0], limit=10).load("train")) == 10
    with pytest.raises(UserError, match=r"limit of toy is 11, but there are only 10 .*classes"):
        source(classes=[0], limit=11).load("train")


def test_resizes_what_the_reader_gives_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    small = source(image_size=4)
    with caplog.at_level(logging.INFO):
        images = small.load("train").images
        small.load("test")
    assert images.shape == (40, 3, 4, 4)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(40).to(torch.uint8))
    assert caplog.text.count("resized from 8x8 to 4x4") == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"image_size": 0}, "image_size of toy"),
        ({"image_size": 30}, "image_size of toy must be a positive multiple of 4"),
        ({"limit": 0}, "limit of toy must be at least 1, got 0"),
        ({"std": [0.5, 0.0, 0.5]}, "std of toy must be above 0"),
        ({"mean": [0.5]}, "mean of toy must have one value a channel"),
        ({"classes": []}, "classes of toy is empty"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        source(**settings)


def test_an_empty_class_is_an_error() -> None:
    def empty(*, root: Path, split: str, image_size: int) -> ImageSet:
        images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        return ImageSet(images, torch.zeros(1, dtype=torch.int64), ["a", "b"])

    with pytest.raises(UserError, match=r"toy has no train images .* of classes"):
        source(reader=empty, classes=[1]).load("train")


def test_label_tells_image_selections_apart() -> None:
    assert source().label == "toy"
    assert source(native_size=8).label == "toy"
    assert source(native_size=32).label == "toy-8px"
    labels = [
        source(classes=[0, 1]).label,
        source(classes=[1, 0]).label,
        source(limit=5).label,
        source(classes=[0, 1], limit=5).label,
    ]
    assert len(set(labels)) == 4
    assert all(label.startswith("toy-") and len(label) == len("toy-") + 6 for label in labels)
