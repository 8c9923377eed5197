"""Pictures of every mode as RGB: a ramp from black to white must come out as one, or be refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from linearize.data.bad_records import BadRecordError
from linearize.data.images import image_size, read_image, to_rgb

RAMP_HW = np.tile(np.arange(256, dtype=np.uint8), (2, 1))


def stored(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def grey(image: Image.Image) -> list[int]:
    """The first row of a picture that has to be grey."""
    pixels_HWC = np.asarray(image)
    assert image.mode == "RGB"
    assert (pixels_HWC == pixels_HWC[..., :1]).all()
    return [int(value) for value in pixels_HWC[0, :, 0]]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "RGBX", "YCbCr", "HSV", "PA"])
def test_a_ramp_of_8_bits_stays_what_it_is(mode: str) -> None:
    assert grey(to_rgb(Image.fromarray(RAMP_HW).convert("RGB" if mode == "HSV" else "L").convert(mode))) == list(
        range(256)
    )


def test_a_ramp_in_inks_comes_out_as_one() -> None:
    assert grey(to_rgb(Image.fromarray(RAMP_HW).convert("RGB").convert("CMYK"))) == list(range(256))


def test_black_and_white_are_0_and_255() -> None:
    assert set(grey(to_rgb(Image.fromarray(RAMP_HW > 127)))) == {0, 255}


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_a_ramp_of_16_bits_comes_out_as_one_of_8_in_every_byte_order(mode: str) -> None:
    order = ">u2" if mode == "I;16B" else "=u2" if mode == "I;16N" else "<u2"
    values_HW = RAMP_HW.astype(order) * np.array(257, order)
    assert grey(to_rgb(Image.frombytes(mode, (256, 2), values_HW.tobytes()))) == list(range(256))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_a_file_of_16_bits_comes_out_as_a_ramp_in_every_format(format: str) -> None:
    image = Image.fromarray(np.repeat(RAMP_HW, 16, axis=0).astype(np.uint16) * 257)
    assert grey(read_image(stored(image, format), "ramp")) == list(range(256))


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    image = Image.fromarray(RAMP_HW.astype(np.uint16))
    assert set(grey(read_image(stored(image, "PPM"), "dark"))) == {0, 1}


def test_a_tiff_of_12_bits_has_its_white_at_4095() -> None:
    image = Image.fromarray(RAMP_HW.astype(np.uint16) * 16)
    image.tag_v2 = {258: (12,)}  # type: ignore[attr-defined]
    assert grey(to_rgb(image)) == [round(value * 16 * 255 / 4095) for value in range(256)]


def test_integers_of_32_bits_are_read_as_16_where_that_is_clear() -> None:
    assert grey(to_rgb(Image.fromarray(RAMP_HW.astype(np.int32) * 257))) == list(range(256))
    assert set(grey(to_rgb(Image.new("I", (4, 4), 0)))) == {0}


def test_floats_from_0_to_1_are_a_ramp() -> None:
    assert grey(to_rgb(Image.fromarray(RAMP_HW.astype(np.float32) / 255))) == list(range(256))


@pytest.mark.parametrize(
    "values_HW",
    [RAMP_HW.astype(np.int32), RAMP_HW.astype(np.int32) * 300, RAMP_HW.astype(np.int32) * 257 - 1,
     RAMP_HW.astype(np.float32), RAMP_HW.astype(np.float32) / 255 - 0.5,
     np.where(RAMP_HW, np.float32("nan"), np.float32(0)), np.full((2, 2), np.float32("inf"))],
    ids=["ints to 255", "ints beyond 16 bits", "negative ints", "floats to 255", "negative floats", "NaN", "infinity"],
)  # fmt: skip
def test_pixels_with_more_than_one_meaning_are_refused(values_HW: Any) -> None:
    with pytest.raises(BadRecordError) as caught:
        to_rgb(Image.fromarray(values_HW))
    assert caught.value.fault == "unclear image"


def test_transparent_pixels_are_white_whatever_colour_they_hide() -> None:
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 0, 128))
    assert grey(to_rgb(half)) == [255, 127]
    assert grey(to_rgb(Image.new("LA", (1, 1), (9, 0)))) == [255]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([7, 7, 7, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    assert grey(read_image(stored(palette), "opaque")) == [7, 9]
    assert grey(read_image(stored(palette, transparency=0), "clear")) == [255, 9]
    assert grey(read_image(stored(palette, transparency=bytes([0, 255])), "clear")) == [255, 9]
    assert grey(read_image(stored(Image.new("L", (1, 1), 3), transparency=3), "grey")) == [255]
    assert grey(read_image(stored(Image.new("RGB", (1, 1), (3, 3, 3)), transparency=(3, 3, 3)), "rgb")) == [255]
    deep = Image.fromarray(np.array([[500, 257 * 9]], np.uint16))
    deep.info["transparency"] = 500
    assert grey(to_rgb(deep)) == [255, 9]


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = stored(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert read_image(content, "moving").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says_and_only_then(format: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), "white")
    upright.paste("black", (0, 0, 24, 16))  # dark at the left above
    back = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    lying = upright if back is None else upright.transpose(back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(lying, format, exif=exif)
    for turns, expected in ((True, upright), (False, lying)):
        found = read_image(content, "photo", exif_rotation=turns)
        assert found.size == image_size(content, "photo", exif_rotation=turns) == expected.size
        difference = np.abs(np.asarray(found, int) - np.asarray(expected, int))
        assert difference.mean() < 8  # JPEG blurs the edges


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_malformed_exif_leaves_a_picture_as_it_is_stored() -> None:
    content = stored(Image.new("RGB", (8, 4), "red"), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\xffnothing there")
    assert read_image(content, "photo").size == (8, 4)


def test_the_size_is_read_without_the_pixels() -> None:
    whole = stored(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)))
    torn = whole[: len(whole) // 2]
    assert image_size(torn, "torn") == (96, 64)
    with pytest.raises(BadRecordError) as caught:
        read_image(torn, "torn")
    assert caught.value.fault == "broken image"


def test_a_decompression_bomb_is_a_bad_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    (tmp_path / "bomb.png").write_bytes(stored(Image.new("RGB", (5, 5))))
    with pytest.raises(BadRecordError) as caught:
        read_image(tmp_path / "bomb.png", "bomb.png")
    assert caught.value.fault == "too large an image"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_narrow_pictures_are_read(size: tuple[int, int]) -> None:
    assert read_image(stored(Image.new("L", size, 9)), "narrow").size == size
