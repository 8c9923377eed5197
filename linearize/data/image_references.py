"""Where a record's images are: files below a folder, data URIs, or content that the record itself holds."""

from __future__ import annotations

import base64
import binascii
import errno
import re
from pathlib import Path

from PIL import Image

from linearize.data.bad_records import BadRecordError
from linearize.data.images import BROKEN, NOT_FOUND, image_size, read_image
from linearize.data.messages import ImageReference
from linearize.errors import DataError

_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
"""What the system says of names that no file has or could have."""

_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_URL = re.compile(r"(data:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)


class ImageReferences:
    """Reads the images that records name.

    Args:
        folder: what names are relative to; None where there is none, and names have to be absolute.
        exif_rotation: whether images are turned upright as their EXIF orientation says.
    """

    def __init__(self, folder: Path | None, *, exif_rotation: bool) -> None:
        self.folder, self.exif_rotation = folder, exif_rotation

    def check(self, reference: ImageReference) -> None:
        """Looks whether the image is there, without opening it.

        Raises:
            BadRecordError: it is not, or is named in a way that is not read.
            DataError: the machine could not tell (permissions, a disk error).
        """
        if isinstance(reference, str) and not _DATA_URI.match(reference):
            path = self._path(reference)
            try:
                is_file = path.is_file()
            except OSError as error:
                if error.errno not in _NOWHERE:
                    raise DataError(f"{path} cannot be read: {error.strerror}. Put that right and resume") from error
                is_file = False
            if not is_file:
                raise BadRecordError(NOT_FOUND, reference)

    def read(self, reference: ImageReference) -> Image.Image:
        """The image as RGB.

        Raises:
            BadRecordError: there is no such image, or none can be made of it.
            DataError: the machine could not read it.
        """
        return read_image(self._source(reference), self._name(reference), exif_rotation=self.exif_rotation)

    def size(self, reference: ImageReference) -> tuple[int, int]:
        """Its width and height, from its header.

        Raises:
            BadRecordError, DataError: as ``read`` does.
        """
        return image_size(self._source(reference), self._name(reference), exif_rotation=self.exif_rotation)

    def _source(self, reference: ImageReference) -> Path | bytes:
        if isinstance(reference, bytes):
            return reference
        head = _DATA_URI.match(reference)
        if head is None:
            self.check(reference)
            return self._path(reference)
        try:
            return base64.b64decode(reference[head.end() :], validate=True)
        except binascii.Error as error:
            raise BadRecordError(BROKEN, f"a data URI whose base64 is damaged: {error}") from None

    def _path(self, name: str) -> Path:
        if url := _URL.match(name):
            raise BadRecordError(
                "image in no file",
                f"{name}: of URLs only base64 data URIs are read; store the image in a file and name that"
                if url[1].lower() != "data:"
                else f"{name}: a data URI without base64; store the image in a file or as data:image/png;base64,...",
            )
        if self.folder is None and not Path(name).is_absolute():
            raise BadRecordError(NOT_FOUND, f"{name}: data.images names no folder that it is relative to")
        return Path(name) if self.folder is None else self.folder / name

    def _name(self, reference: ImageReference) -> str:
        if isinstance(reference, bytes):
            return "an image inside the record"
        return (
            "a data URI" if _DATA_URI.match(reference) else str(self.folder / reference if self.folder else reference)
        )
