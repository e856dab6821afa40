"""Pixels to grey values."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from slicevote_server.errors import InvalidInput
from slicevote_server.intensity import IntensityPolicy, prepare
from slicevote_server.resampling import resample
from slicevote_server.thumbnail import encode_thumbnail
from slicevote_volumes import IntensityRange, Slice

SHARP = IntensityPolicy(smoothing_px=0)


def grey_of(pixels, *, modality="MR", intensity_range=None, policy=SHARP, slope=1.0, intercept=0.0):
    image = Slice(3, pixels, slope, intercept)
    return prepare(image, modality=modality, intensity_range=intensity_range, policy=policy, thumbnail=False).grey


def ramp(low, high, dtype, side=224):
    return np.linspace(low, high, side * side).reshape(side, side).astype(dtype)


def test_ct_is_windowed_in_hu():
    pixels = ramp(0, 4095, np.uint16)
    grey = grey_of(pixels, modality="CT", intercept=-1024.0)
    np.testing.assert_allclose(grey, np.clip((pixels.astype(float) - 1024 + 1000) / 2000, 0, 1), atol=1e-5)


def test_ct_ignores_the_volumes_range_and_others_use_it():
    pixels = ramp(-500, 500, np.int16)
    given = IntensityRange(-100, 100)
    np.testing.assert_allclose(grey_of(pixels, modality="CT", intensity_range=given), (pixels + 1000) / 2000, atol=1e-5)
    np.testing.assert_allclose(grey_of(pixels, intensity_range=given), np.clip((pixels + 100) / 200, 0, 1), atol=1e-5)


def test_without_a_range_each_slices_own_percentiles():
    pixels = ramp(0, 1000, np.float32)
    grey = grey_of(pixels)
    assert (grey == 0).mean() == pytest.approx(0.01, abs=0.002)
    assert (grey == 1).mean() == pytest.approx(0.01, abs=0.002)


def test_a_negative_slope_does_not_turn_black_into_white():
    pixels = ramp(0, 1000, np.int16)
    np.testing.assert_allclose(grey_of(pixels, slope=-1.0), 1 - grey_of(pixels), atol=1e-4)


@pytest.mark.parametrize("value", [0, -2000, 700])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_no_contrast_is_blank(value, modality):
    assert grey_of(np.full((64, 64), value, np.int16), modality=modality) is None


def test_ct_of_nothing_but_padding_is_blank_though_its_values_differ():
    assert grey_of(ramp(-3000, -1500, np.int16), modality="CT") is None


def test_a_small_bright_spot_is_not_blank():
    pixels = np.zeros((512, 512), np.int16)
    pixels[100:104, 100:104] = 1000  # less than one percent: both percentiles are 0
    assert grey_of(pixels) is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_slice(bad):
    pixels = np.zeros((8, 8), np.float32)
    pixels[2, 3] = bad
    with pytest.raises(InvalidInput, match="slice 3 has values that are not finite"):
        grey_of(pixels)


@pytest.mark.parametrize("shape", [(224, 224), (512, 512), (9, 128), (600, 30), (1, 1), (128, 300), (224, 500)])
def test_every_size_becomes_224(shape):
    generator = np.random.default_rng(0)
    pixels = generator.uniform(0.2, 0.8, size=shape).astype(np.float32)
    resampled = resample(pixels, 224, 224)
    assert resampled.shape == (224, 224)
    assert resampled.dtype == np.float32
    assert resampled.min() >= 0.2 - 1e-5
    assert resampled.max() <= 0.8 + 1e-5


def test_shrinking_averages_instead_of_skipping():
    checkerboard = np.indices((448, 448)).sum(axis=0) % 2
    np.testing.assert_allclose(resample(checkerboard.astype(np.float32), 224, 224), 0.5, atol=1e-6)


def test_smoothing_is_part_of_the_policy():
    generator = np.random.default_rng(1)
    pixels = generator.uniform(0, 1, size=(224, 224)).astype(np.float32)
    given = IntensityRange(0, 1)
    sharp = grey_of(pixels, intensity_range=given)
    smooth = grey_of(pixels, intensity_range=given, policy=IntensityPolicy(smoothing_px=1.0))
    assert smooth.std() < 0.5 * sharp.std()
    assert smooth.mean() == pytest.approx(sharp.mean(), abs=1e-3)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "expected"),
    [
        ((512, 512), None, (96, 96)),
        ((100, 400), None, (24, 96)),
        ((40, 20), None, (96, 48)),
        # A sagittal series cut transversally: a few rows, far apart.
        ((24, 512), (10.0, 0.5), (90, 96)),
        ((512, 24), (0.5, 10.0), (96, 90)),
        ((100, 400), (0.7, 0.7), (24, 96)),
    ],
)
def test_thumbnail_keeps_the_proportions(shape, spacing_mm, expected):
    generator = np.random.default_rng(2)
    picture = np.kron(generator.uniform(0, 1, (4, 4)), np.ones((shape[0] // 4, shape[1] // 4))).astype(np.float32)
    decoded = cv2.imdecode(np.frombuffer(encode_thumbnail(picture, spacing_mm), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded.shape == expected
    assert np.abs(decoded / 255 - resample(picture, *expected)).mean() < 0.03
