"""The quickstart's images: the same for the same settings, cached, and hard to tell apart."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mosaickd.data import glyphs
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError


def read(root: Path, split: str = "train", **settings: Any) -> ImageSet:
    usual: dict[str, Any] = {
        "image_size": 16, "alphabet": "letters", "train_images": 240, "test_images": 48,
    }  # fmt: skip
    return glyphs.read(root=root, split=split, **usual | settings)


@pytest.mark.parametrize(("alphabet", "classes"), [("letters", 24), ("strokes", 15)])
def test_balanced_classes(tmp_path: Path, alphabet: str, classes: int) -> None:
    images = read(tmp_path, alphabet=alphabet)
    assert images.images.shape == (240, 3, 16, 16)
    assert len(images.classes) == len(set(images.classes)) == classes
    counts = images.labels.bincount(minlength=classes)
    assert counts.max() - counts.min() <= 1


def test_same_settings_same_images(tmp_path: Path) -> None:
    first, again = read(tmp_path / "a"), read(tmp_path / "b")
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, read(tmp_path / "a", seed=1).images)


def test_train_and_test_share_no_image(tmp_path: Path) -> None:
    train, test = read(tmp_path), read(tmp_path, "test")
    assert len(test) == 48
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in test.images)


def test_cache_is_used_and_redrawn_when_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = read(tmp_path)
    (cache,) = tmp_path.glob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(glyphs, "draw", None)  # drawing would fail
        assert torch.equal(read(tmp_path).images, first.images)
    whole = cache.read_bytes()
    for damaged in (b"", b"not an archive", whole[: len(whole) // 2]):
        cache.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert torch.equal(read(tmp_path).images, first.images)
        assert cache.name in caplog.text
        assert cache.read_bytes() == whole
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_cannot_be_written_does_not_stop_anyone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(read(blocked)) == 240
    assert "not cached" in caplog.text


def test_glyphs_stand_out_and_strokes_look_like_letters_locally(tmp_path: Path) -> None:
    letters = read(tmp_path, train_images=1200).images.float()
    strokes = read(tmp_path, train_images=1200, alphabet="strokes").images.float()
    # the same colours: means and spreads of the pixels agree
    assert np.allclose(letters.mean((0, 2, 3)), strokes.mean((0, 2, 3)), atol=10)
    assert np.allclose(letters.std((0, 2, 3)), strokes.std((0, 2, 3)), atol=10)
    # within nearly every image, luminance spreads well beyond the noise
    weights = torch.tensor([0.299, 0.587, 0.114])
    luminance = (letters * weights[:, None, None]).sum(1)
    noise = 255 * glyphs.NOISE * weights.norm()
    assert luminance.std((1, 2)).quantile(0.02) > 1.25 * noise


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"alphabet": "runes"}, "alphabet must be one of letters, strokes, got 'runes'"),
        ({"train_images": 0}, "train_images of letters must be at least 1"),
        ({"seed": -1}, "seed of letters must be at least 0"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read(tmp_path, **settings)
