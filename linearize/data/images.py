"""Pictures as people see them: any picture that Pillow opens, as RGB of 8 bits, by one rule for each mode.

    1, L, P, CMYK, YCbCr, HSV, RGB      as Pillow converts them
    transparent pixels, in any mode     laid on white
    I;16, I of PNG and PPM              grey of 16 bits: 65535 is white (in TIFF of fewer bits, the largest number)
    I                                   the same where a number is over 255; else, or beyond 16 bits, refused
    F                                   grey from 0 to 1: 1 is white; anything else is refused
    animations, several pages           the first one

What is refused could be read in two ways, one of which would come out black or white all over.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from linearize.data.bad_records import BadRecordError
from linearize.errors import DataError

T = TypeVar("T")

NOT_FOUND = "image not found"
BROKEN = "broken image"
UNCLEAR = "unclear image"
WHITE_OF_16_BITS = 65535

_TURN = Image.Transpose
_TURNS: Mapping[int, Image.Transpose] = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what brings the stored pixels upright."""

_LIES_ON_SIDE = frozenset({5, 6, 7, 8})


def read_image(source: Path | bytes, name: str, *, exif_rotation: bool = True) -> Image.Image:
    """The decoded picture as RGB.

    Args:
        source: a file, or the content of one.
        name: of the picture, for messages.
        exif_rotation: whether it is turned upright as its EXIF orientation says.

    Raises:
        BadRecordError: the file is missing, no decoder can make a picture of it, or its pixels have no one meaning.
        DataError: the machine could not read it (permissions, too many open files, a disk error).
    """
    return _opened(source, name, lambda file: _upright(file, exif_rotation))


def image_size(source: Path | bytes, name: str, *, exif_rotation: bool = True) -> tuple[int, int]:
    """Width and height of what ``read_image`` gives, from the header: no pixel is decoded.

    Raises:
        BadRecordError, DataError: as ``read_image`` does, as far as the header shows it.
    """
    return _opened(source, name, lambda file: _upright_size(file, exif_rotation))


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, by the rules of this module; itself where it is RGB already.

    Raises:
        BadRecordError: its pixels have no one meaning.
        ValueError: Pillow cannot convert its mode.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    pixels = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(pixels, mask=pixels.getchannel("A"))
    return white


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits; Pillow itself would clip it."""
    values_HW = np.asarray(image)
    lowest, highest = values_HW.min(), values_HW.max()
    if image.mode == "F":
        if not (lowest >= 0 and highest <= 1):  # NaN is neither
            raise BadRecordError(
                UNCLEAR, f"floating-point pixels from {lowest:g} to {highest:g}; expected 0 to 1. Store it with 8 bits"
            )
        white = 1.0
    else:
        white = float(_white_of_integers(image, int(lowest), int(highest)))
    grey_HW = np.rint(values_HW.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey_HW[values_HW == clear] = 255
    return Image.fromarray(grey_HW).convert("RGB")


def _white_of_integers(image: Image.Image, lowest: int, highest: int) -> int:
    """The number that stands for white."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))  # Pillow reads 12 bits as 16
        return int(min(2 ** int(bits[0]) - 1, WHITE_OF_16_BITS))
    if image.format in ("PNG", "PPM"):  # Pillow gives numbers of 16 bits
        return WHITE_OF_16_BITS
    if lowest < 0 or highest > WHITE_OF_16_BITS or 0 < highest <= 255:
        raise BadRecordError(
            UNCLEAR,
            f"32-bit pixels from {lowest} to {highest}, so 255 or 65535 could be white. Store it with 8 or 16 bits",
        )
    return WHITE_OF_16_BITS


def _upright(file: Image.Image, exif_rotation: bool) -> Image.Image:
    stored = _orientation(file)
    file.load()
    left = _orientation(file)  # Pillow turns TIFF by itself as it decodes
    image = to_rgb(file)
    image = image.copy() if image is file else image  # the file's own ends with it
    if exif_rotation:
        return image.transpose(_TURNS[left]) if left in _TURNS else image
    if left != stored and stored in _TURNS:
        back = {6: 8, 8: 6}.get(stored, stored)
        return image.transpose(_TURNS[back])
    return image


def _upright_size(file: Image.Image, exif_rotation: bool) -> tuple[int, int]:
    lies_on_side = _orientation(file) in _LIES_ON_SIDE
    is_turned = file.format == "TIFF"
    return file.size[::-1] if lies_on_side and is_turned != exif_rotation else file.size


def _orientation(file: Image.Image) -> int:
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # Whatever reading malformed EXIF raises: the picture is shown as it is stored, as viewers do.
        return 1


def _opened(source: Path | bytes, name: str, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            return read(file)
    except BadRecordError as error:
        raise BadRecordError(error.fault, f"{name}: {error.detail}") from None
    except FileNotFoundError:
        raise BadRecordError(NOT_FOUND, name) from None
    except UnidentifiedImageError:
        raise BadRecordError(BROKEN, f"{name} is in no image format that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise BadRecordError("too large an image", f"{name}: {error}") from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever meets them (OSError, SyntaxError, struct.error, ...), but an error number
        # comes from the system alone.
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{name} cannot be read: {error.strerror}. Put that right and resume") from error
        raise BadRecordError(BROKEN, f"{name}: {error}") from error
