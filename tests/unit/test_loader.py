"""The resident loader: each image once an epoch, right pixels, a state that goes on exactly."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from mosaickd.data.loader import (
    BalancedLoader,
    Normalize,
    ResidentLoader,
    TestBatches,
    random_crop_and_flip,
)
from mosaickd.data.source import ImageSet
from mosaickd.errors import UserError

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
CPU = torch.device("cpu")


def image_set(count: int, size: int = 8) -> ImageSet:
    """Random images; an image's label is its index."""
    rng = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, 3, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.arange(count), [str(i) for i in range(count)])


SETTINGS: dict[str, Any] = {
    "mean": MEAN, "std": STD, "augment": True, "seed": 0, "device": CPU,
}  # fmt: skip


def loader(data: ImageSet, batch_size: int = 4, **changes: Any) -> ResidentLoader:
    return ResidentLoader(data, batch_size=batch_size, **(SETTINGS | changes))


def balanced(labels: list[int], batch_size: int = 4, **changes: Any) -> BalancedLoader:
    """As many images as labels, classes 0 to 9."""
    images = image_set(len(labels)).images
    data = ImageSet(images, torch.tensor(labels), [str(i) for i in range(10)])
    return BalancedLoader(data, batch_size=batch_size, **(SETTINGS | changes))


def draw(source: ResidentLoader, count: int) -> list[tuple[Tensor, Tensor]]:
    return [next(source)[:2] for _ in range(count)]


def assert_same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    for (pixels, labels), (other_pixels, other_labels) in zip(one, other, strict=True):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(labels, other_labels)


# ------------------------------------------------------------------------------------- the order


def test_each_image_comes_once_an_epoch_and_epochs_join_without_a_gap() -> None:
    source = loader(image_set(10))
    assert len(source) == 3  # batches until each image has been seen
    batches = draw(source, 15)  # six epochs of ten
    assert {pixels.shape for pixels, _ in batches} == {(4, 3, 8, 8)}, "also where an epoch ends"
    seen = torch.cat([labels for _, labels in batches]).tolist()
    epochs = [seen[start : start + 10] for start in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6, "each epoch in an order of its own"


def test_a_batch_larger_than_the_set_says_what_to_choose() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size.*5.*strokes.*4 training images"):
        loader(image_set(4), batch_size=5, name="strokes")


def test_the_seed_decides_order_and_augmentation() -> None:
    data = image_set(16)
    assert_same(draw(loader(data, seed=3), 6), draw(loader(data, seed=3), 6))
    one, other = (torch.cat([x for _, x in draw(loader(data, seed=s), 4)]) for s in (3, 4))
    assert not torch.equal(one, other)


def test_other_random_numbers_neither_disturb_nor_are_disturbed() -> None:
    data = image_set(16)
    expected = draw(loader(data), 6)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    source = loader(data)
    assert_same(draw(source, 3), expected[:3])
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    assert_same(draw(source, 3), expected[3:])


# ----------------------------------------------------------------------------- balanced classes

# Classes 1, 4 and 8 never occur; 9 has one image, 0 has forty.
UNEVEN = [0] * 40 + [2] * 10 + [3] * 5 + [5] * 20 + [6] * 3 + [7] * 2 + [9]


def test_every_class_that_occurs_is_drawn_equally_often() -> None:
    shuffled = torch.tensor(UNEVEN)[torch.randperm(81, generator=torch.Generator().manual_seed(1))]
    source = balanced(shuffled.tolist(), batch_size=70)
    labels = torch.cat([labels for _, labels in draw(source, 100)])
    times = labels.bincount(minlength=10)
    assert (times > 0).nonzero().flatten().tolist() == [0, 2, 3, 5, 6, 7, 9]
    # Chi-square over seven classes, 1,000 draws each: above 22.5 once in a thousand seeds.
    occurring = times[times > 0].double()
    assert float(((occurring - 1000) ** 2 / 1000).sum()) < 22.5


def test_within_a_class_every_image_is_drawn_equally_often() -> None:
    source = balanced(UNEVEN, batch_size=70)
    times = torch.cat([next(source)[2] for _ in range(100)]).bincount(minlength=81).double()
    for label in set(UNEVEN):
        own = times[torch.tensor(UNEVEN) == label]
        assert float(own.min()) > 0, "also the last image of a class"
        expected = own.mean()
        # Under 1 in 100,000 for 39 degrees of freedom, the most there are.
        assert float(((own - expected) ** 2 / expected).sum()) < 85


# ------------------------------------------------------------------------------------ the pixels


def test_without_augmentation_pixels_are_the_images_normalised() -> None:
    data = image_set(10)
    for pixels, labels in draw(loader(data, augment=False), 5):
        for image, label in zip(pixels, labels.tolist(), strict=True):
            for channel in range(3):
                raw = data.images[label, channel].double() / 255
                expected = (raw - MEAN[channel]) / STD[channel]
                assert torch.allclose(image[channel].double(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["each in turn", "balanced"])
def test_indices_say_which_images_these_are(kind: str) -> None:
    source = balanced([0, 7, 7, 2, 2, 2, 9, 0, 1, 7], augment=False)
    if kind == "each in turn":
        source = loader(image_set(10), augment=False)  # type: ignore[assignment]
    for _ in range(5):
        pixels, labels, indices = next(source)
        assert indices.dtype == torch.int64
        assert torch.equal(labels, source.labels[indices])
        shown = (Normalize(MEAN, STD).inverse(pixels) * 255).round().byte()
        assert torch.equal(shown, source.images[indices])


def test_normalize_maps_mean_to_0_and_one_deviation_to_1() -> None:
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    normalize = Normalize(MEAN, STD)
    assert torch.allclose(normalize(mean.expand(2, 3, 4, 4)), torch.zeros(2, 3, 4, 4))
    assert torch.allclose(normalize((mean + std).expand(2, 3, 4, 4)), torch.ones(2, 3, 4, 4))
    assert normalize.state_dict() == {}, "no part of anyone's weights"


def naive_variants(image: Tensor, padding: int) -> dict[tuple[int, int, bool], Tensor]:
    """All results that padding, cropping and flipping one image [C, H, W] can have."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    variants = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            variants[top, left, False] = crop
            variants[top, left, True] = crop.flip(2)
    return variants


def test_each_image_is_cropped_and_flipped_by_itself_and_as_torchvision_would() -> None:
    padding, count = 1, 900
    image = image_set(1).images
    result = random_crop_and_flip(
        image.expand(count, -1, -1, -1), padding, torch.Generator().manual_seed(0)
    )
    assert result.shape == (count, 3, 8, 8)
    assert result.dtype == torch.uint8
    variants = naive_variants(image[0], padding)
    times = dict.fromkeys(variants, 0)
    for out in result:
        matches = [key for key, variant in variants.items() if torch.equal(out, variant)]
        assert len(matches) == 1, "rows, columns and channels of one crop"
        times[matches[0]] += 1
    # 18 outcomes, 50 times each on average: all alike, within six standard deviations.
    assert min(times.values()) > 8, times
    assert max(times.values()) < 92, times


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (16, 2)])
def test_padding_is_an_eighth_of_the_size_and_black(size: int, padding: int) -> None:
    white = ImageSet(
        torch.full((64, 3, size, size), 255, dtype=torch.uint8), torch.arange(64), ["white"]
    )
    source = loader(white, batch_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    pixels = torch.cat([next(source)[0] for _ in range(4)])
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    black_rows = (pixels[:, 0].amax(dim=2) == 0).sum(dim=1)
    assert int(black_rows.max()) == padding


def test_memory_format_follows_the_setting() -> None:
    data = image_set(8)
    for channels_last in (True, False):
        pixels, _, _ = next(loader(data, channels_last=channels_last))
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert pixels.is_contiguous(memory_format=layout)


# ------------------------------------------------------------------------------------- the state


@pytest.mark.parametrize("kind", ["each in turn", "balanced"])
@pytest.mark.parametrize("position", [0, 1, 3, 5])  # 3: inside of the second epoch
def test_a_loader_goes_on_exactly_from_its_state(kind: str, position: int) -> None:
    def new(seed: int) -> ResidentLoader:
        if kind == "balanced":
            return balanced(UNEVEN, seed=seed)
        return loader(image_set(10), seed=seed)

    source = new(seed=0)
    draw(source, position)
    state = source.state_dict()
    file = io.BytesIO()
    torch.save(state, file)  # as it lies in a checkpoint
    expected = draw(source, 8)
    file.seek(0)
    resumed, again = new(seed=99), new(seed=98)
    draw(resumed, 2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same(draw(resumed, 3), expected[:3])
    again.load_state_dict(resumed.state_dict())
    assert_same(draw(again, 5), expected[3:])
    again.load_state_dict(state)  # did not change when its loader went on
    assert_same(draw(again, 8), expected)


# ------------------------------------------------------------------------------------ test images


def test_test_batches_are_all_images_once_in_order_every_time() -> None:
    data = image_set(10)
    batches = TestBatches(data, batch_size=4, mean=MEAN, std=STD, device=CPU)
    for _ in range(2):
        pairs = list(batches)
        assert [len(labels) for _, labels in pairs] == [4, 4, 2]
        assert torch.cat([labels for _, labels in pairs]).tolist() == list(range(10))
        pixels = torch.cat([pixels for pixels, _ in pairs])
        assert torch.allclose(pixels, Normalize(MEAN, STD)(data.images / 255), atol=1e-6)
