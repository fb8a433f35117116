"""Opened images of any kind as 8-bit RGB: how they are converted, and which are refused because nothing would be left.

As in the authors' loader (Pillow's `convert("RGB")`) wherever that keeps the picture: transparency is dropped and the
colours beneath it are used, CMYK follows Pillow's formula, colour profiles and EXIF orientation are ignored.
"""

import numpy as np
from PIL import Image

# Version of these rules: images checked under other rules are opened again.
RULES = 2


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB, 16-bit channels by their high bytes.

    Raises ValueError with the reason for an image whose picture would be lost, and whatever Pillow raises for a damaged
    one.
    """
    # Several views of one scene in a file (MPO, as phones and cameras write them) begin with the photograph itself.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ValueError(f"it is animated, {getattr(image, 'n_frames', 'several')} frames; keep one of them")
    if image.format == "PNG" and "16B" in str(getattr(image, "tile", "")):
        return from_16_bit(image)
    if "A" in image.getbands() or "transparency" in image.info:
        return without_alpha(image)
    return image.convert("RGB")


def from_16_bit(image: Image.Image) -> Image.Image:
    """Return the high bytes of an image of 16 bits a channel. Raises ValueError if hardly anything would be left.

    Pillow does so for colours itself, but clips grey at 255.
    """
    flat = is_flat(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    rgb = without_alpha(image) if "A" in image.getbands() else image.convert("RGB")
    if not flat and np.asarray(rgb).max() < 16:
        raise ValueError("it uses at most the lowest 12 of 16 bits: 16 levels would be left; scale it to 8 bits")
    return rgb


def without_alpha(image: Image.Image) -> Image.Image:
    """Return the colours of an image, also beneath transparency. Raises ValueError if there is only one colour."""
    whole = image.convert("RGBA")
    rgb = whole.convert("RGB")
    if is_flat(rgb) and not is_flat(whole):
        raise ValueError("its picture is only in its transparency, which is dropped; put it on a background")
    return rgb


def is_flat(image: Image.Image) -> bool:
    """Whether all pixels are the same."""
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(low == high for low, high in bands)
