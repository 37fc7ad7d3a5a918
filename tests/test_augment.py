"""What is done to images: each move against a plain computation, views, normalization."""

import numpy as np
import pytest

from nas.augment import OFF, USUAL, Augmentation, View, augmentation, normalized

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(0, 1, (64, 16, 16, 3)).astype(np.float32)


def seen(epoch=0, images=IMAGES, **moves):
    return View(Augmentation(**moves), (5, 2), epoch)(images)


def test_off_gives_the_images_themselves():
    assert View(OFF, (0,), 3)(IMAGES) is IMAGES


def test_a_random_flip_turns_about_half_and_changes_with_the_epoch():
    def turned(epoch):
        out = seen(epoch, flip="random")
        same = (out == IMAGES).all((1, 2, 3))
        assert (out[~same] == IMAGES[~same][:, :, ::-1]).all()
        return ~same

    assert 16 < turned(0).sum() < 48 and (turned(0) != turned(1)).any()


def test_an_alternating_flip_shows_both_sides_in_every_two_epochs():
    first, second, third = (seen(epoch, flip="alternating") for epoch in range(3))
    np.testing.assert_array_equal(first[:, :, ::-1], second)
    np.testing.assert_array_equal(first, third)
    assert 16 < (first == IMAGES).all((1, 2, 3)).sum() < 48


@pytest.mark.parametrize(("crop", "reach"), [(0.0625, 1), (0.125, 2)])
def test_a_crop_shifts_and_repeats_the_edges(crop, reach):
    out = seen(crop=crop, images=np.repeat(IMAGES[:1], 200, 0))
    padded = np.pad(IMAGES[0], ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    sides = range(2 * reach + 1)
    windows = {padded[i : i + 16, j : j + 16].tobytes() for i in sides for j in sides}
    assert {image.tobytes() for image in out} == windows, "every shift occurs, and no other"


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_cutout_is_one_square_of_the_mean(share):
    out, side = seen(cutout=share), int(16 * share)
    holes = (out != IMAGES).any(3)
    np.testing.assert_allclose(out[holes], np.broadcast_to(IMAGES.mean((0, 1, 2)),
                                                           out[holes].shape))  # fmt: skip
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert (holes.sum((1, 2)) == rows * columns).all(), "a rectangle: a square cut by the edge"
    assert rows.max() == columns.max() == side and rows.min() >= side // 2


def test_one_view_moves_all_normalizations_alike():
    view = View(Augmentation("random", 0.125, 0.25), (1,), 4)
    np.testing.assert_allclose(view(3 * IMAGES + 1), 3 * view(IMAGES) + 1, atol=1e-5)
    np.testing.assert_array_equal(view(IMAGES), view(IMAGES))


def test_choices_take_the_place_of_the_usual_one_by_one():
    assert augmentation({}) == OFF and augmentation({}, USUAL) == USUAL
    assert augmentation({"augment.flip": "none"}, USUAL) == Augmentation("none", 0.125)
    assert augmentation({"augment.cutout": 0.5}) == Augmentation(cutout=0.5)


def test_normalizations():
    pixels = RNG.integers(0, 256, (8, 16, 16, 3)).astype(np.float32)
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.25, 0.3])
    of = {kind: normalized(pixels, kind, mean, std) for kind in ("channel", "image", "none")}
    np.testing.assert_allclose(of["none"] * 255, pixels, rtol=1e-6)
    np.testing.assert_allclose(of["channel"] * std + mean, of["none"], atol=1e-6)
    np.testing.assert_allclose(of["image"].mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(of["image"].std((1, 2, 3)), 1, atol=1e-3)
    assert all(x.dtype == np.float32 for x in of.values())
    with pytest.raises(ValueError, match="unknown normalization 'batch'; known: channel"):
        normalized(pixels, "batch", mean, std)
