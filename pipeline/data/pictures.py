"""Pictures: the bytes of a file → RGB as a viewer shows it, and what tells that two of them are nearly the same.

No other file decodes a picture. What a row holds of one is its bytes, so that it stays readable wherever its file is moved.
Needs pillow (the extra `images`).
"""

from __future__ import annotations

import base64
import functools
import importlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # none that runs a program, as EPS does
MOST = 50_000_000  # pixels; a file of a few kilobytes may claim to hold billions
_SIDE, _WAVES = 32, 8  # of the grey picture whose waves are compared, and how many of them, each way
_BITS, _COLOUR = 4, 12  # of 64 signs of waves that may differ, and levels of 256 in a quarter's mean colour
_SMALL = 96  # pixels of the longer side of a picture on a page, at most
_BAND = 13  # bits: five such bands hold all 64, and where at most four bits differ, one band is the same


class Unreadable(ValueError):
    """A picture that can't be shown; the text is a reason to count."""


def held(data: bytes, path: str = "") -> dict[str, str]:
    """Return what a row holds of a picture: `bytes` (base64), `path` and `hash`; of one that can't be shown its `fault`."""
    try:
        found = fingerprint(opened(data))
    except Unreadable as error:
        return {"path": path, "fault": str(error)}
    return {"bytes": base64.b64encode(data).decode("ascii"), "path": path, "hash": found}


def shown(cell: Mapping[str, str]) -> Image.Image:
    """Return the picture of a row's cell, as `opened` has it."""
    return opened(base64.b64decode(cell["bytes"]))


def opened(data: bytes) -> Image.Image:
    """Return a picture in RGB as a viewer shows it: upright by its EXIF tag, on white, the first frame, 16 bits as 8.

    Colour profiles are not applied. Raises Unreadable.
    """
    images = _pillow()
    if not data:
        raise Unreadable("empty image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are odd and can be shown
            image = images.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > MOST:
                raise Unreadable(f"image of more than {MOST // 1_000_000} million pixels (a decompression bomb?)")
            image.load()
            image = _eight_bits(_upright(image))
            found = _on_white(image)
    except images.DecompressionBombError:
        raise Unreadable(f"image of more than {MOST // 1_000_000} million pixels (a decompression bomb?)") from None
    except Unreadable:
        raise
    except _unidentified():
        raise Unreadable("not an image of a kind that is read") from None
    except Exception:  # pillow raises whatever a broken byte leads to: OSError, SyntaxError, struct.error, IndexError, …
        raise Unreadable("broken or truncated image") from None
    if found.width * found.height == 1:
        raise Unreadable("image of a single pixel")
    return found


@functools.cache
def _pillow() -> Any:
    """Return pillow with what reads our formats, and nothing that reads others."""
    try:
        from PIL import Image

        for name in _FORMATS:
            importlib.import_module(f"PIL.{name.title().replace('Webp', 'WebP')}ImagePlugin")
    except ImportError:
        raise UserError(
            "pictures need pillow, which is not installed; `make setup-data` or the extra `images` installs it"
        ) from None
    return Image


def _unidentified() -> type[Exception]:
    from PIL import UnidentifiedImageError

    return UnidentifiedImageError


def _upright(image: Image.Image) -> Image.Image:
    """Return a picture turned as its EXIF tag says; as it is, where what stands there is no EXIF."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of a broken tag, which viewers pass over
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture of 16 bits a pixel, which pillow would clip at 255, in 8; others as they are."""
    if image.mode == "F":
        raise Unreadable("image of floating point numbers, which nothing says how to show")
    if not image.mode.startswith("I"):
        return image
    import numpy as np

    levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535) * 255 / 65535
    found: Image.Image = _pillow().fromarray(np.round(levels).astype(np.uint8))
    return found


def _on_white(image: Image.Image) -> Image.Image:
    """Return a picture in RGB; what is transparent shows white."""
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white: Image.Image = _pillow().new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return white.convert("RGB")


def pixels(image: Image.Image, side: int, resample: int) -> np.ndarray:
    """Return a picture at a size, (side, side, 3) uint8; `resample`: pillow's number of a filter."""
    import numpy as np

    return np.asarray(image.resize((side, side), resample=resample), dtype=np.uint8)


def thumbnails(pixels: np.ndarray) -> list[str]:
    """Return pictures, (pictures, high, wide, 3) uint8, each as `thumbnail` has it."""
    return [thumbnail(_pillow().fromarray(one)) for one in pixels]


def thumbnail(image: Image.Image) -> str:
    """Return a picture for a page, as a data URL: at most 96 pixels high and wide; without loss where it is no larger itself."""
    small, kind, file = image.copy(), "png" if max(image.size) <= _SMALL else "jpeg", io.BytesIO()
    small.thumbnail((_SMALL, _SMALL))
    small.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@functools.cache
def _cosines() -> np.ndarray:
    """Return the first waves of the discrete cosine transform, (waves, side)."""
    import numpy as np

    places = (np.arange(_SIDE) + 0.5) * np.pi / _SIDE
    return np.cos(np.arange(_WAVES)[:, None] * places)


def fingerprint(image: Image.Image) -> str:
    """Return a perceptual hash in hex: the signs of 64 slow waves of the grey picture, and the mean colour of its quarters."""
    import numpy as np
    from PIL.Image import Resampling

    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Resampling.BILINEAR), dtype=float)
    waves = (_cosines() @ grey @ _cosines().T).ravel()
    waves[0] = 0.0  # how bright the whole is, which the colours tell
    strong = np.where(np.abs(waves) > _SIDE, waves, 0.0)  # what is weaker is rounding, in a picture of one colour
    colours = np.asarray(image.resize((2, 2), Resampling.BOX), dtype=np.uint8)
    return np.packbits(strong > np.median(strong)).tobytes().hex() + colours.tobytes().hex()


def near(known: Iterable[str]) -> Callable[[str], bool]:
    """Return what says whether a picture's hash is nearly that of a known one: at most 4 of 64 signs, and 12 levels of colour, apart."""
    signs: list[int] = []
    colours: list[np.ndarray] = []
    bands: dict[tuple[int, int], list[int]] = {}
    for number, found in enumerate(dict.fromkeys(known)):
        sign, colour = _parts(found)
        signs.append(sign)
        colours.append(colour)
        for band in _bands(sign):
            bands.setdefault(band, []).append(number)

    def alike(found: str) -> bool:
        sign, colour = _parts(found)
        close = {number for band in _bands(sign) for number in bands.get(band, ())}
        return any(
            (sign ^ signs[number]).bit_count() <= _BITS and int(abs(colour - colours[number]).max()) <= _COLOUR
            for number in close
        )

    return alike


def _parts(found: str) -> tuple[int, np.ndarray]:
    import numpy as np

    return int(found[:16], 16), np.frombuffer(bytes.fromhex(found[16:]), np.uint8).astype(int)


def _bands(sign: int) -> list[tuple[int, int]]:
    """Return the bands of a hash, one more than the bits that may differ, so that one of them is the same."""
    return [(band, sign >> (band * _BAND) & ((1 << _BAND) - 1)) for band in range(_BITS + 1)]
