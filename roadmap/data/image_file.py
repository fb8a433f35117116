"""One image in a file: whether it may be read at all, and its pixels as RGB."""

import errno
import os
import re
import stat
from io import BufferedReader
from pathlib import Path

from PIL import Image

from roadmap.data.rgb import to_rgb
from roadmap.errors import DataError
from roadmap.files import open_regular
from roadmap.text import printable, reason

# By content, since ImageNet holds a PNG called .JPEG. Never all of Pillow's formats: EPS starts another program.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MAX_BYTES = 2**30  # a larger file is no image, and would fill the memory


def problem_of(about: os.stat_result) -> str:
    """Return what forbids reading an image at all: a pipe, say, would never end."""
    if not stat.S_ISREG(about.st_mode):
        return "not a regular file"
    if about.st_size > MAX_BYTES:
        return f"is no image (larger than {MAX_BYTES / 2**30:g} GiB)"
    return "" if about.st_size else "is empty (0 bytes)"


def open_image(path: Path) -> BufferedReader:
    """Open a file that may be an image. Raises OSError for one that must not be read."""
    file = open_regular(path)
    if problem := problem_of(os.fstat(file.fileno())):
        file.close()
        raise OSError(errno.EINVAL, problem, str(path))
    return file


def read_image(path: Path) -> Image.Image:
    """Decode an image as RGB.

    Raises DataError that names the file if it is truncated, no image, too large to be one, or lost in 8-bit RGB.
    """
    try:
        with open_image(path) as file, Image.open(file, formats=FORMATS) as image:
            return to_rgb(image)
    except MemoryError:
        raise  # no fault of the file
    except Exception as error:  # a dozen kinds, whatever Pillow's decoders trip over in a damaged file
        why = re.sub(r"<_io[^>]*>", "the file", reason(error))
        raise DataError(printable(f"{path}: cannot be decoded as an image ({why})")) from error
