"""Patches equal those of transformers' image processor bit for bit, for any size."""

import numpy as np
import pytest

from pixelis_jax.policy import processing

torch = pytest.importorskip("torch")
qwen2_vl = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
qwen3_vl_video = pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")

SIZES = [(480, 640), (37, 900), (1, 150), (256, 256), (1200, 333), (20, 20)]


def _theirs(config: processing.ProcessingConfig):
    return qwen2_vl.Qwen2VLImageProcessorPil(
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
        patch_size=config.patch_size,
        image_mean=config.mean,
        image_std=config.std,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limits", [(65_536, 16_777_216), (4096, 40_000)])
@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.48145466, 0.4578275, 0.40821073)])
def test_image_patches_are_identical(size, limits, mean):
    config = processing.ProcessingConfig(min_pixels=limits[0], max_pixels=limits[1], mean=mean)
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = _theirs(config)(rgb, return_tensors="np", input_data_format="channels_last")
    patches, grid = processing.process_image(rgb, config)
    assert grid == tuple(expected["image_grid_thw"][0])
    np.testing.assert_array_equal(patches, expected["pixel_values"])


def test_settings_of_a_saved_processor_are_read(tmp_path):
    _theirs(processing.ProcessingConfig(min_pixels=1024, patch_size=8)).save_pretrained(tmp_path)
    config = processing.ProcessingConfig.from_json(tmp_path)
    assert config == processing.ProcessingConfig(min_pixels=1024, patch_size=8)


@pytest.mark.parametrize("frames", [2, 3, 5, 64])
@pytest.mark.parametrize("size", SIZES)
def test_video_size_is_that_of_transformers(frames, size):
    limits = {"min_pixels": 4096, "max_pixels": 2_000_000}
    ours = processing.smart_resize_video(frames, *size, factor=32, temporal_factor=2, **limits)
    assert ours == qwen3_vl_video.smart_resize(frames, *size, factor=32, temporal_factor=2, **limits)


def test_video_patches_have_the_published_order():
    config = processing.ProcessingConfig()
    frames = np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    patches, grid, times = processing.process_video(frames, [0.0, 0.5, 1.0], config)
    resized = np.stack([processing._resize(frame, (grid[1] * 16, grid[2] * 16)) for frame in frames])
    normal = torch.from_numpy(np.stack([processing._normalise(frame, config) for frame in resized]))
    patchify = qwen3_vl_video.Qwen3VLVideoProcessor.patchify
    expected, *expected_grid = patchify(None, normal.permute(0, 3, 1, 2)[None], 16, 2, 2)
    assert list(grid) == expected_grid
    np.testing.assert_array_equal(patches, expected[0].numpy())
    assert times == [0.25, 1.0]
