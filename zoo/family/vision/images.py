"""Images from anywhere: always RGB, upright and 8 bits a channel, or one sentence that says why not.

Pillow is imported where it is used, so that commands that touch no image do not pay for it.
"""

from __future__ import annotations

import base64
import io
import stat
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from zoo.errors import DataError, nearest

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

# What is decoded. Pillow knows 40 more, some of which start other programs (EPS) or are rarely tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LARGEST = 64_000_000  # pixels: 200 MB decoded, an 8000 x 8000 photograph


def read_image(source: str | Path | bytes | Image | np.ndarray[Any, Any]) -> Image:
    """Return an image as 8-bit RGB, turned as its EXIF orientation says, transparency laid over white.

    Args:
        source: a path, the bytes of a file, a PIL image, or a uint8 array (H, W) or (H, W, 3).

    Raises:
        DataError: it is missing, empty, damaged, no image, or decodes to more than 64 million pixels.
    """
    from PIL import Image

    file: IO[bytes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about large images and odd metadata: what matters raises
        if isinstance(source, Image.Image):
            return _upright_rgb(source, str(getattr(source, "filename", "")) or "The image")
        if isinstance(source, str | Path):
            name, file = str(source), _opened(Path(source))
        elif isinstance(source, bytes | bytearray | memoryview):
            name, file = f"The image ({len(source):,} bytes)", io.BytesIO(source)
        else:
            return _from_array(source)
        with file:
            return _upright_rgb(_header(file, name), name)


def data_uri(image: Image) -> str:
    """Return an image as a PNG data URI, which a page can hold."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _opened(path: Path) -> IO[bytes]:
    """Open a regular file; a pipe or a device might never end."""
    path = path.expanduser()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is {'a directory' if path.is_dir() else 'not a regular file'}, not an image.")
        return path.open("rb")
    except FileNotFoundError:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"{path} does not exist.{nearest(path.name, beside)}") from None
    except (OSError, ValueError) as error:  # no permission, a name with a zero byte
        raise DataError(f"{str(path)[:200]!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _header(file: IO[bytes], name: str) -> Image:
    """Read the header alone: nothing is decoded yet, whatever size it announces."""
    from PIL import Image, UnidentifiedImageError

    if not file.read(1):
        raise DataError(f"{name} is empty: it holds 0 bytes.")
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image that can be read ({', '.join(FORMATS)}).") from None
    except Image.DecompressionBombError:
        raise DataError(_too_large(name)) from None
    except Exception as error:  # decoders of hostile bytes raise whatever they like
        raise DataError(f"{name} is damaged: {_reason(error)}.") from None


def _upright_rgb(image: Image, name: str) -> Image:
    """Decode, turn and convert."""
    from PIL import Image

    _require_size(image.width, image.height, name)
    try:
        image.load()
        rgb = _rgb(_turned(image), name)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(_too_large(name)) from None
    except Exception as error:
        raise DataError(f"{name} is damaged: {_reason(error)}.") from None
    rgb.info.clear()
    return rgb


def _turned(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # unreadable metadata says nothing about the pixels
        return image


def _rgb(image: Image, name: str) -> Image:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_narrowed(image, name)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image).convert("RGB")


def _narrowed(image: Image, name: str) -> np.ndarray[Any, Any]:
    """16 bits to 8, as grey: Pillow's own conversion clips at 255 instead of scaling."""
    import numpy as np

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise DataError(f"{name} has 32-bit pixels, whose range is not known; save it with 8 or 16 bits a channel.")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_array(source: Any) -> Image:
    from PIL import Image

    shape, dtype = getattr(source, "shape", None), str(getattr(source, "dtype", ""))
    if shape is None or dtype != "uint8" or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        given = f"an array {tuple(shape)} of {dtype}" if shape is not None else type(source).__name__
        raise DataError(f"An image is a path, bytes, a PIL image or a uint8 array (H, W) or (H, W, 3), not {given}.")
    _require_size(shape[1], shape[0], "The array")
    return Image.fromarray(source).convert("RGB")


def _require_size(width: int, height: int, name: str) -> None:
    if width == 0 or height == 0:
        raise DataError(f"{name} is empty: {width} x {height} pixels.")
    if width * height > LARGEST:
        raise DataError(_too_large(name))


def _too_large(name: str) -> str:
    return f"{name} would decode to more than {LARGEST // 10**6} million pixels; scale it down first."


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:150].rstrip(".") or type(error).__name__
