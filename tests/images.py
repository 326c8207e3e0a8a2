"""Small drawn pictures on which the objectives and tasks of images are tested."""

import base64
import io

import numpy as np
import pytest

from pipeline.data import pictures

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed: make setup-data")
ImageDraw = pytest.importorskip("PIL.ImageDraw")
SHAPES = ("circle", "square")


def drawn(seed=0, side=64, squares=4):
    """A picture of coloured squares that no other seed gives."""
    colours = np.random.default_rng(seed).integers(0, 255, (squares, squares, 3))
    return Image.fromarray(np.kron(colours, np.ones((side // squares, side // squares, 1))).astype(np.uint8))


def scene(seed):
    """A picture of one shape, somewhere, in some colour, and what it is called."""
    rng = np.random.default_rng(seed)
    image, label = Image.new("RGB", (48, 48), "white"), SHAPES[seed % len(SHAPES)]
    across, down, half = rng.integers(12, 36), rng.integers(12, 36), rng.integers(6, 12)
    shape = getattr(ImageDraw.Draw(image), "ellipse" if label == "circle" else "rectangle")
    shape((across - half, down - half, across + half, down + half), fill=tuple(map(int, rng.integers(0, 200, 3))))
    return image, label


def saved(image, kind="PNG", **how):
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def looked_at(url):
    """The levels of a picture that a page holds as a data URL, (high, wide, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def nearly(cell):
    """Return the file of a picture that differs in as little as changes its hash."""
    for more in range(1, 128):
        image = pictures.shown(cell)
        image.putpixel((8, 8), tuple(level + (more if level < 128 else -more) for level in image.getpixel((8, 8))))
        if (data := saved(image)) and pictures.held(data)["hash"] != cell["hash"]:
            return data
    raise AssertionError("no such picture")


def rows(count):
    """Rows of scenes, as a recipe gives them."""
    made = [scene(seed) for seed in range(count)]
    return [
        {"image": pictures.held(saved(image), f"{number}.png"), "label": label} for number, (image, label) in enumerate(made)
    ]


def folder(path, count=80):
    """A folder of scenes by class."""
    for seed in range(count):
        image, label = scene(seed)
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / f"{seed}.png").write_bytes(saved(image))
    return path
