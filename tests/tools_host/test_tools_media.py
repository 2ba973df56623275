"""Files of every kind, good and bad, and what is derived from them."""

import struct
import wave
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from lab_media import write_clip
from PIL import Image, ImageOps

from tools_host import images
from tools_host.geometry import encode_mask
from tools_host.media import MediaError, MediaStore, draw_mask, file_sha256
from tools_host.protocol import MediaSpec, Parent, RegionSpec


def spec_of(path: str | Path, *parents: Parent) -> MediaSpec:
    info = MediaStore().inspect(str(path))
    return MediaSpec(path=str(path), sha256=info.sha256, kind=info.kind, parents=parents)


def pixels_of(path: Path) -> np.ndarray:
    return MediaStore().open(spec_of(path)).image()


# --- colour modes ---


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "black")
    image.paste((255, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    info = MediaStore().inspect(str(tmp_path / "turned.png"))
    assert (info.width, info.height) == (20, 40)
    pixels = pixels_of(tmp_path / "turned.png")
    assert pixels.shape == (40, 20, 3)
    assert (pixels[:10] == (255, 0, 0)).all() and (pixels[10:] == 0).all()


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    assert (pixels_of(tmp_path / "red.tif") == (255, 0, 0)).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    assert pixels_of(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_images_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    assert pixels_of(tmp_path / "float.tif")[0, :, 1].tolist() == [0, 128, 255]


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 2, 4), dtype=np.uint8)
    pixels[0, 1] = (0, 0, 255, 255)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    assert pixels_of(tmp_path / "clear.png").tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_palette_grey_and_bilevel(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    Image.new("L", (2, 1), 77).save(tmp_path / "grey.png")
    Image.new("1", (2, 1), 1).save(tmp_path / "bits.png")
    assert pixels_of(tmp_path / "palette.png")[0, 0].tolist() == [10, 20, 30]
    assert pixels_of(tmp_path / "grey.png")[0, 0].tolist() == [77] * 3
    assert pixels_of(tmp_path / "bits.png")[0, 0].tolist() == [255] * 3


def test_of_an_animation_the_first_frame_is_used_and_that_is_said(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    info = MediaStore().inspect(str(tmp_path / "moving.gif"))
    assert info.kind == "image" and "only the first of 3 frames" in info.note
    assert (pixels_of(tmp_path / "moving.gif") == (255, 0, 0)).all()


def test_shared_pixels_cannot_be_written(photo: str) -> None:
    with pytest.raises(ValueError, match="read-only"):
        MediaStore().open(spec_of(photo)).image()[0, 0] = 0


# --- bad files ---


def missing(path: Path) -> None:
    pass


def directory(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("not a picture\n" * 100)


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def truncated_jpeg(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:5000])


def truncated_png(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:5000])


def header_alone(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n")


def png_of_size(path: Path, width: int, height: int) -> None:
    """A PNG whose header promises `width x height` pixels in a few hundred bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def bomb(path: Path) -> None:
    png_of_size(path, 30_000, 30_000)


def large_bomb(path: Path) -> None:
    png_of_size(path, 12_000, 12_000)


def sound(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))


def truncated_mp4(path: Path) -> None:
    write_clip(path.with_suffix(".whole.mp4"))
    whole = path.with_suffix(".whole.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def truncated_streaming_mp4(path: Path) -> None:
    """The index comes first, so the first half can be read."""
    write_clip(path.with_suffix(".whole.mp4"), options={"movflags": "faststart"})
    whole = path.with_suffix(".whole.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def mp4_without_frames(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n")


def png_with_a_huge_text(path: Path) -> None:
    """Pillow refuses it with a ValueError when it is opened."""
    png_of_size(path, 8, 8)
    body = b"note\0\0" + zlib.compress(b"x" * 2_000_000)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk + data[33:])


def truncated_webp(path: Path) -> None:
    """Pillow says `could not create decoder object`, and not of what, when it is opened."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="WEBP")
    path.write_bytes(path.read_bytes()[:40])


def damaged_avif(path: Path) -> None:
    """The decoder raises a RuntimeError."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="AVIF")
    path.write_bytes(path.read_bytes().replace(b"pitm", b"none"))


def write_avi(path: Path, *sizes: tuple[int, int]) -> None:
    """An AVI of JPEGs, three of each size, under a header that knows the first alone."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = *sizes[0], "yuvj420p"
        container.start_encoding()
        for index, (width, height) in enumerate(size for size in sizes for _ in range(3)):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuvj420p", Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
            for packet in encoder.encode(frame.reformat(format="yuvj420p")):
                packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 10), index, index
                container.mux(packet)


def unknown_codec(path: Path) -> None:
    write_avi(path, (64, 48))
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZZZZ"))


def huge_video(path: Path) -> None:
    """The container promises frames of 16,000 x 16,000 pixels."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64), np.uint8), format="gray")
        container.mux(stream.encode(frame))
    # Width and height in the track's header: element 0xB0 of one byte, 0xBA of one byte.
    path.write_bytes(path.read_bytes().replace(b"\xb0\x81\x40\xba\x81\x30", b"\xb0\x82\x3e\x80\xba\x82\x3e\x80"))


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (missing, "a.png", "No such file"),
        (directory, "a", "a directory"),
        (empty, "a.png", "the file is empty"),
        (text, "a.txt", "not a readable image or video"),
        (noise, "a.png", "not a readable image or video"),
        (truncated_jpeg, "a.jpg", "damaged or truncated"),
        (truncated_png, "a.png", "damaged or truncated"),
        (header_alone, "a.png", "not a readable image or video"),
        (bomb, "a.png", "too large"),
        (large_bomb, "a.png", "more than the limit of 120 megapixels"),
        (sound, "a.wav", "not a readable image or video"),
        (truncated_mp4, "a.mp4", "not a readable image or video"),
        (truncated_streaming_mp4, "a.mp4", ""),
        (mp4_without_frames, "a.mp4", "no"),
        (playlist, "a.m3u8", "not a readable image or video"),
        (png_with_a_huge_text, "a.png", "damaged or truncated"),
        (truncated_webp, "a.webp", "damaged or truncated"),
        (damaged_avif, "a.avif", "damaged or truncated"),
        (unknown_codec, "a.avi", "the codec of the video is not known"),
        (huge_video, "a.mkv", "more than the limit of 120 megapixels"),
        (missing, "a\0.png", "null"),
        (missing, "a\ud800.png", "surrogates"),
    ],
)
def test_a_bad_file_is_one_clear_line(make: Callable[[Path], None], name: str, message: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(MediaError) as caught:
        MediaStore().inspect(str(tmp_path / name))
    assert message in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_frames_that_cannot_be_counted_are_no_reason_to_refuse_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 120, 240)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "first of 3 frames" in MediaStore().inspect(str(path)).note
    data = path.read_bytes()
    path.write_bytes(data[: data.rfind(b"\x21\xf9") + 3])  # ends in the third frame's control block
    assert MediaStore().inspect(str(path)).note == "" and pixels_of(path).max() == 0


@pytest.mark.filterwarnings("error")
def test_flaws_that_pillow_reads_over_are_not_printed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a lamp" * 20
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    entry = struct.pack(">HHI", 0x010E, 2, 121)
    start = path.read_bytes().index(entry) + len(entry)
    data = path.read_bytes()
    path.write_bytes(data[:start] + struct.pack(">I", 2**30) + data[start + 4 :])  # the text lies beyond the end of the file
    with pytest.raises(UserWarning), Image.open(path) as image:
        ImageOps.exif_transpose(image)
    assert pixels_of(path).shape == (8, 8, 3)


@pytest.mark.parametrize("cache_bytes", [2**24, 2**12])
def test_frames_of_another_size_are_refused(tmp_path: Path, cache_bytes: int) -> None:
    write_avi(tmp_path / "same.avi", (64, 48), (64, 48))
    write_avi(tmp_path / "a.avi", (64, 48), (80, 48))
    for name, whole in (("same.avi", True), ("a.avi", False)):
        view = MediaStore(cache_bytes).open(spec_of(tmp_path / name))
        if whole:
            assert len(list(view.frames(0, 9))) == 6
            continue
        with pytest.raises(MediaError, match="64 x 48 at first, 80 x 48 at 0.30 s"):
            list(view.frames(0, 9))


def test_the_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_bomb(tmp_path / "a.png")
    monkeypatch.setattr(images, "_rgb", lambda image: pytest.fail("decoded"))
    with pytest.raises(MediaError):
        images.read_image(str(tmp_path / "a.png"))


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    spec = spec_of(tmp_path / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="changed"):
        MediaStore().open(spec)


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(str(tmp_path / "a")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- video ---


@pytest.mark.parametrize("cache_bytes", [2**24, 2**16])
def test_frames_have_their_times(clip: str, cache_bytes: int) -> None:
    """Once kept whole, once as a video too long to be kept."""
    store = MediaStore(cache_bytes)
    info = store.inspect(clip)
    assert (info.kind, info.width, info.height, info.fps) == ("video", 64, 48, 10.0)
    assert info.duration_s == pytest.approx(2.0)
    view = store.open(spec_of(clip))
    np.testing.assert_allclose(view.frame_times(), np.arange(20) / 10, atol=1e-6)
    for time_s, level in [(None, 0), (0.0, 0), (0.5, 50), (0.54, 50), (0.56, 60), (1.9, 190), (99.0, 190)]:
        assert view.image(time_s).mean() == pytest.approx(level, abs=2)
    picked = [(round(time_s, 3), round(float(frame.mean()) / 10)) for time_s, frame in view.frames(0.35, 0.6)]
    assert picked == [(0.4, 4), (0.5, 5), (0.6, 6)]
    assert store.cached_bytes <= cache_bytes


def test_a_short_video_is_decoded_once(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools_host import media

    store = MediaStore()
    spec = spec_of(clip)
    store.open(spec).image(0.3)
    monkeypatch.setattr(media, "read_frames", lambda *_: pytest.fail("decoded again"))
    assert store.open(spec).image(1.0).mean() == pytest.approx(100, abs=2)


def test_a_turned_video_is_turned_back(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pixels = np.zeros((48, 64, 3), dtype=np.uint8)
        pixels[:, :32] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    # The display matrix of the track header, here a quarter turn clockwise: the left comes to the top.
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    info = MediaStore().inspect(str(path))
    assert (info.width, info.height) == (48, 64)
    shown = pixels_of(path)
    assert shown[:28].mean() > 240 and shown[36:].mean() < 15


def test_an_mpeg_stream_is_a_video(tmp_path: Path) -> None:
    """Pillow would take it for an image."""
    with av.open(str(tmp_path / "a.mpg"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 250, 10):
            pixels = np.full((48, 64, 3), level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    info = MediaStore().inspect(str(tmp_path / "a.mpg"))
    assert info.kind == "video" and info.duration_s == pytest.approx(1.0, abs=0.1)
    assert MediaStore().open(spec_of(tmp_path / "a.mpg")).image(0.4).mean() == pytest.approx(100, abs=6)


# --- derived media ---


def crop(*box: int, kind: str = "crop", mask: object = None, time_s: float | None = None) -> Parent:
    return Parent(media=1, step=0, bbox_2d=box or None, time_s=time_s, kind=kind, mask=mask)  # type: ignore[arg-type]


def test_a_crop_of_a_crop_holds_the_roots_own_pixels(photo: str) -> None:
    store = MediaStore()
    root = store.open(spec_of(photo)).image()
    view = store.open(spec_of(photo, crop(500, 0, 1000, 500), crop(100, 200, 200, 400)))
    assert np.array_equal(view.image(), root[10:20, 110:120])
    assert (view.kind, view.width, view.height) == ("image", 10, 10)


def test_a_frame_of_a_video_is_an_image(clip: str) -> None:
    view = MediaStore().open(spec_of(clip, crop(kind="frame", time_s=0.7)))
    assert view.kind == "image" and view.image().mean() == pytest.approx(70, abs=2)


def test_an_overlay_is_drawn_for_the_model_and_not_for_tools(photo: str) -> None:
    store = MediaStore()
    root = store.open(spec_of(photo)).image()
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:40, 50:90] = True
    overlay = crop(kind="overlay", mask=encode_mask(mask))
    assert np.array_equal(store.open(spec_of(photo, overlay)).image(), root)
    drawn = store.open(spec_of(photo, overlay), drawn=True).image()
    assert np.array_equal(drawn[~mask], root[~mask])
    assert (drawn[20, 50:90] == (255, 0, 160)).all() and (drawn[20:40, 89] == (255, 0, 160)).all()
    inside = drawn[25, 60].astype(float)
    np.testing.assert_allclose(inside, 0.65 * root[25, 60] + 0.35 * np.array([255, 0, 160]), atol=0.51)
    cut = store.open(spec_of(photo, overlay, crop(0, 0, 500, 500)), drawn=True).image()
    assert np.array_equal(cut, root[:50, :100])


def test_an_overlay_whose_mask_is_not_its_mediums_is_refused(photo: str) -> None:
    for mask in (encode_mask(np.ones((10, 20), bool)), {"size": [100, 200], "counts": "1"}, {"size": [100, 200]}):
        overlay = Parent(media=1, step=0, bbox_2d=None, time_s=None, kind="overlay", mask=mask)
        with pytest.raises(MediaError, match="the mask of an overlay"):
            MediaStore().open(spec_of(photo, overlay), drawn=True)


def test_drawing_an_empty_mask_changes_nothing() -> None:
    pixels = np.full((5, 5, 3), 9, dtype=np.uint8)
    assert np.array_equal(draw_mask(pixels, encode_mask(np.zeros((5, 5), dtype=bool))), pixels)


def test_a_region_opens_with_its_mask(photo: str) -> None:
    mask = np.eye(100, 200, dtype=bool)
    spec = RegionSpec(media=spec_of(photo), bbox_2d=(0, 0, 500, 1000), mask=encode_mask(mask), time_s=None)
    region = MediaStore().open_region(spec)
    assert region.box_px == (0, 0, 100, 100) and region.mask is not None and np.array_equal(region.mask, mask)


def test_the_store_keeps_below_its_ceiling(tmp_path: Path) -> None:
    store = MediaStore(100_000)
    for index in range(8):
        Image.new("RGB", (100, 100), (index, 0, 0)).save(tmp_path / f"{index}.png")
        store.inspect(str(tmp_path / f"{index}.png"))
        assert store.cached_bytes <= 100_000
    assert store.cached_bytes == 90_000


def write_gappy_avi(path: Path) -> None:
    """Three frames at 0, 0.5 and 2 s of a clip of 10 frames a second: the container counts the dropped ones."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time in (0, 5, 20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * time, np.uint8), format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_dropped_frames_are_no_damage(tmp_path: Path) -> None:
    write_gappy_avi(tmp_path / "gaps.avi")
    with av.open(str(tmp_path / "gaps.avi")) as container:
        assert container.streams.video[0].frames > 3
    info = MediaStore().inspect(str(tmp_path / "gaps.avi"))
    assert info.kind == "video" and info.duration_s == pytest.approx(2.1, abs=0.11)
