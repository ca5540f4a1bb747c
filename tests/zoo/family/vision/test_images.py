"""Images as they come: turned, converted, or refused in one sentence that names the file."""

from __future__ import annotations

import base64
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from outsiders import python
from PIL import Image

from zoo.errors import DataError
from zoo.family.vision.images import LARGEST, data_uri, read_image

pytestmark = pytest.mark.quick

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_halves(mode: str = "RGB") -> Image.Image:
    """A red left half and a blue right half, 40 x 20."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image.convert(mode)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def near(pixel: Any, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes | None = None, extra: bytes = b""
) -> bytes:
    """A PNG written by hand; without `rows` its image data is a few bytes, whatever size the header announces."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows if rows is not None else b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


# --- what is read right -----------------------------------------------------------------------------------------------


def test_the_same_image_from_path_bytes_pil_and_array(tmp_path: Path):
    image = two_halves()
    path = saved(tmp_path / "x.png", image)
    sources = [
        path,
        str(path),
        path.read_bytes(),
        memoryview(path.read_bytes()),
        image,
        Image.open(path),
        np.asarray(image),
    ]
    for found in map(read_image, sources):
        assert found.mode == "RGB" and found.tobytes() == image.tobytes() and not found.info
    assert read_image(np.full((3, 2), 7, np.uint8)).getpixel((1, 2)) == (7, 7, 7)


@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (40, 20), (2, 10)),
        (2, (40, 20), (37, 10)),
        (3, (40, 20), (37, 10)),
        (6, (20, 40), (10, 2)),
        (8, (20, 40), (10, 37)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, size: tuple[int, int], red: tuple[int, int]):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_image(saved(tmp_path / "x.jpg", two_halves(), exif=exif, quality=95))
    assert found.size == size and near(found.getpixel(red), RED)


def test_unreadable_metadata_says_nothing_about_the_pixels(tmp_path: Path):
    path = saved(tmp_path / "x.jpg", two_halves(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken", quality=95)
    assert near(read_image(path).getpixel((2, 10)), RED)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P"])
def test_modes_become_rgb(tmp_path: Path, mode: str):
    grey = Image.linear_gradient("L").resize((64, 64))
    image = two_halves(mode) if mode in ("CMYK", "P") else grey.convert(mode)
    path = saved(
        tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"), image, **({"quality": 95} if mode == "CMYK" else {})
    )
    found = read_image(path)
    assert found.mode == "RGB"
    if mode in ("CMYK", "P"):
        assert near(found.getpixel((2, 10)), RED) and near(found.getpixel((37, 10)), BLUE)
    else:
        assert np.array_equal(np.asarray(found)[..., 0], np.asarray(image.convert("L")))


def test_transparency_lies_over_white(tmp_path: Path):
    clear = two_halves("RGBA")
    clear.paste((0, 255, 0, 0), (0, 0, 20, 20))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    keyed = two_halves()
    found = {
        "rgba": read_image(saved(tmp_path / "rgba.png", clear)).getpixel((2, 2)),
        "la": read_image(saved(tmp_path / "la.png", half)).getpixel((0, 0)),
        "p": read_image(saved(tmp_path / "p.png", palette, transparency=1)).getpixel((0, 0)),
        "p, bytes": read_image(saved(tmp_path / "q.png", palette, transparency=bytes([255, 128]))).getpixel((0, 0)),
        "rgb, one colour": read_image(saved(tmp_path / "k.png", keyed, transparency=RED)).getpixel((2, 2)),
        "gif": read_image(saved(tmp_path / "p.gif", palette, transparency=1)).getpixel((0, 0)),
    }
    assert found.pop("la") == (127, 127, 127)
    assert near(found.pop("p, bytes"), (132, 137, 142), 1)
    assert set(found.values()) == {WHITE}
    assert read_image(saved(tmp_path / "p2.png", palette)).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str):
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    found = read_image(saved(tmp_path / f"x.{suffix}", Image.fromarray(values)))
    assert np.asarray(found)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_colour_and_grey_with_alpha():
    rows = b"\0" + struct.pack(">3H", 65535, 32896, 0)
    assert read_image(png(1, 1, depth=16, rows=rows)).getpixel((0, 0)) == (255, 128, 0)
    rows = b"\0" + struct.pack(">2H", 0, 0)
    assert read_image(png(1, 1, depth=16, colour=4, rows=rows)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 1)])
def test_extreme_shapes_are_read(tmp_path: Path, size: tuple[int, int]):
    assert read_image(saved(tmp_path / "x.png", Image.new("L", size, 9))).size == size


def test_an_animation_gives_its_first_frame(tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    path = saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert near(read_image(path).getpixel((0, 0)), RED)


def test_reading_leaves_its_source_alone_and_warns_of_nothing(tmp_path: Path):
    image = two_halves("RGBA")
    before = image.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(image).putpixel((0, 0), (1, 2, 3))
        rgb = two_halves()
        read_image(rgb).putpixel((0, 0), (1, 2, 3))
    assert image.tobytes() == before and rgb.getpixel((0, 0)) == RED


def test_a_data_uri_holds_the_same_pixels():
    uri = data_uri(two_halves())
    assert uri.startswith("data:image/png;base64,")
    assert read_image(base64.b64decode(uri.partition(",")[2])).tobytes() == two_halves().tobytes()


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(source: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_image(source)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?")) and len(sentence) < 400
    return sentence


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_refused_not_half_shown(tmp_path: Path, suffix: str, share: float):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / f"x.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert str(path) in refused(path)


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (8001, 8000)])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, size: tuple[int, int]):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(*size))
    assert refused(path) == f"{path} would decode to more than 64 million pixels; scale it down first."


def test_a_bomb_is_not_decoded():
    """Real image data of 100 megapixels, 300 MB when decoded: the process must stay small."""
    code = (
        "import io, resource, zlib, struct, sys; from PIL import Image; from zoo.family.vision.images import read_image\n"
        "from zoo.errors import DataError\n"
        "c = lambda k, b: struct.pack('>I', len(b)) + k + b + struct.pack('>I', zlib.crc32(k + b))\n"
        "z = zlib.compressobj(); row = b'\\0' * 30001\n"
        "d = b''.join(z.compress(row) for _ in range(10000)) + z.flush()\n"
        "head = struct.pack('>IIBBBBB', 10000, 10000, 8, 2, 0, 0, 0)\n"
        "p = b'\\x89PNG\\r\\n\\x1a\\n' + c(b'IHDR', head) + c(b'IDAT', d) + c(b'IEND', b'')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_image(p)\n"
        "except DataError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    sentence, grown = python("-c", code).stdout.splitlines()
    assert "more than 64 million pixels" in sentence and int(grown) < 50_000  # kB


def test_the_largest_allowed_is_near_the_limit(tmp_path: Path):
    path = saved(tmp_path / "x.png", Image.new("1", (8000, LARGEST // 8000)))
    assert read_image(path).size == (8000, 8000)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty: it holds 0 bytes."),
        (b"hello, world", "is not an image that can be read (PNG, JPEG, "),
        (b"%PDF-1.7", "is not an image"),
        (b"\x89PNG\r\n\x1a\n", "is"),
        (b"\xff\xd8\xff", "is"),
        (b"GIF89a", "is"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        (png(0, 5), "is"),
        (png(4, 4, extra=chunk(b"IHDR", b"")), "is"),
        (png(2, 2, colour=9), "is"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, says: str):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert refused(path).startswith(f"{path} {says}")
    assert refused(content).startswith(f"The image ({len(content):,} bytes) {says}")


def test_unreadable_paths_are_named(tmp_path: Path):
    saved(tmp_path / "seven.png", two_halves())
    assert refused(tmp_path / "sevn.png") == f"{tmp_path}/sevn.png does not exist. Did you mean 'seven.png'?"
    assert refused(tmp_path) == f"{tmp_path} is a directory, not an image."
    assert refused(tmp_path / ("x" * 300)).endswith("cannot be read: File name too long.")
    assert "cannot be read" in refused("a\0b.png")
    assert "does not exist" in refused(tmp_path / "no" / "such.png")
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe").endswith("pipe is not a regular file, not an image.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named(tmp_path: Path):
    path = saved(tmp_path / "x.png", two_halves())
    path.chmod(0)
    assert refused(path).endswith("cannot be read: Permission denied.")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (np.zeros((0, 4), np.uint8), "The array is empty: 4 x 0 pixels."),
        (np.zeros((4, 4, 4), np.uint8), "not an array (4, 4, 4) of uint8."),
        (np.zeros((4, 4), np.float32), "not an array (4, 4) of float32."),
        (
            np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (9000, 9000), (0, 0)),
            "The array would decode to more than 64",
        ),
        (Image.new("RGB", (0, 3)), "The image is empty: 0 x 3 pixels."),
        (Image.new("F", (2, 2)), "The image has 32-bit pixels"),
        (None, "not NoneType."),
        (3.5, "not float."),
    ],
)
def test_what_is_handed_over_wrongly_is_said(source: Any, says: str):
    assert says in refused(source)


def test_damaged_bytes_never_escape_as_another_error():
    """Every kind of file with bytes flipped all over: an image, or a sentence."""
    draw = np.random.default_rng(0)
    for suffix in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        buffer = io.BytesIO()
        two_halves().save(buffer, format=suffix)
        for _ in range(60):
            damaged = bytearray(buffer.getvalue())
            for place in draw.integers(0, len(damaged), 4):
                damaged[place] = draw.integers(0, 256)
            try:
                assert read_image(bytes(damaged)).mode == "RGB"
            except DataError as error:
                assert "\n" not in str(error)


def test_importing_the_module_does_not_import_pillow():
    assert (
        python("-c", "import sys, zoo.family.vision.images; print('PIL' in sys.modules, 'numpy' in sys.modules)").stdout
        == "False False\n"
    )
