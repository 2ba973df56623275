"""Sizes, patch order by hand, and refusals. Equality with transformers is shown in tests/oracle."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelis_jax.policy import processing
from pixelis_jax.policy.processing import ProcessingConfig


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_smart_resize_keeps_its_promises(h, w):
    if max(h, w) > 200 * min(h, w):
        with pytest.raises(ValueError, match="factor of 200"):
            processing.smart_resize(h, w, 32, 65_536, 1_000_000)
        return
    height, width = processing.smart_resize(h, w, 32, 65_536, 1_000_000)
    assert height % 32 == width % 32 == 0
    assert 65_536 <= height * width <= 1_000_000


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_fit_resize_stays_inside_the_square(h, w):
    size = processing.fit_resize(h, w, 16, 64)
    assert max(size) == 64 and min(size) >= 16 and all(side % 16 == 0 for side in size)


def test_patch_order_by_hand():
    # Each 8 x 8 patch of one grey level: level = 10 * patch row + patch column.
    config = ProcessingConfig.tiny()
    levels = np.add.outer(10 * np.arange(8), np.arange(8)).astype(np.uint8)
    rgb = np.repeat(np.kron(levels, np.ones((8, 8), np.uint8))[..., None], 3, axis=-1)
    patches, grid = processing.process_image(rgb, config)
    assert grid == (1, 8, 8) and patches.shape == (64, 384)
    order = np.round((patches[:, 0] * 0.5 + 0.5) * 255).astype(int)
    assert order[:8].tolist() == [0, 1, 10, 11, 2, 3, 12, 13]  # two blocks of the first block row
    assert order[16] == 20  # first patch of the second block row
    assert (patches == patches[:, :1]).all()


def test_inside_a_patch_channel_is_slowest_then_time_y_x():
    config = ProcessingConfig(patch_size=8, fit_side=16)
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    frames[1, 0, 3, 2] = 255  # second frame, row 0, column 3, blue
    patches, grid, times = processing.process_video(frames, [1.0, 2.0], config)
    assert grid == (1, 2, 2) and times == [1.5]
    bright = np.flatnonzero(patches[0] > 0)
    assert bright.tolist() == [2 * (2 * 8 * 8) + 1 * (8 * 8) + 0 * 8 + 3]


def test_an_odd_clip_repeats_its_last_frame():
    config = ProcessingConfig.tiny()
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    patches, grid, times = processing.process_video(frames, [0.0, 0.4, 0.8], config)
    still, _ = processing.process_image(frames[2], config)
    assert grid == (2, 8, 8) and times == pytest.approx([0.2, 0.8])
    np.testing.assert_array_equal(patches[64:], still)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8), "uint8"), ((8, 8, 4), "uint8"), ((8, 8, 3), "float64"), ((0, 8, 3), "uint8")]
)
def test_what_is_no_rgb_image_is_refused(shape, dtype):
    rgb = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match="uint8 RGB"):
        processing.process_image(rgb, ProcessingConfig.tiny())


def test_times_must_match_frames():
    with pytest.raises(ValueError, match="2 frames but 1 times"):
        processing.process_video(np.zeros((2, 8, 8, 3), np.uint8), [0.0], ProcessingConfig.tiny())


def test_packing_frames():
    media = [(np.ones((4, 5), np.float32), (1, 2, 2)), (2 * np.ones((8, 5), np.float32), (2, 2, 2))]
    patches, grid = processing.pack_frames(media, frames=4, bucket=8, patch_dim=5)
    assert grid.tolist() == [[2, 2], [2, 2], [2, 2], [0, 0]]
    assert patches[:, :4, 0].tolist() == [[1] * 4, [2] * 4, [2] * 4, [0] * 4] and not patches[:, 4:].any()
    with pytest.raises(ValueError, match="do not fit"):
        processing.pack_frames(media, frames=2, bucket=8, patch_dim=5)
    assert processing.pack_frames([], frames=1, bucket=8, patch_dim=5)[0].shape == (1, 8, 5)


def test_settings_round_trip_and_refusals(tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(ProcessingConfig.tiny().to_json()))
    assert ProcessingConfig.from_json(tmp_path) == ProcessingConfig.tiny()
    for change, message in (
        ({"do_resize": False}, "do_resize"),
        ({"pixel_magic": 1}, "pixel_magic"),
        ({"size": [1, 2]}, "expected an object"),
        ({"patch_size": "16"}, "patch_size is '16', expected a positive integer"),
        ({"patch_size": -8}, "patch_size is -8, expected a positive integer"),
        ({"image_mean": 0.5}, "not iterable"),
        ({"image_std": [0.5, 0.5, 0.0]}, "three numbers above 0"),
        ({"image_mean": [0.5, 0.5]}, "expected three numbers"),
    ):
        file.write_text(json.dumps(ProcessingConfig().to_json() | change))
        with pytest.raises(ValueError, match=message) as caught:
            ProcessingConfig.from_json(file)
        assert "preprocessor_config.json" in str(caught.value)
    file.write_text("[]")
    with pytest.raises(ValueError, match="preprocessor_config.json: expected an object"):
        ProcessingConfig.from_json(file)
