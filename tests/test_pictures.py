"""Pictures as rows: every kind of file as a viewer shows it, what is dropped and named, and both sides of the split."""

import base64
import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.data import pictures, recipe, types
from pipeline.system.errors import UserError
from tests.images import Image, drawn, saved


def near_to(image, wanted, within):
    found, meant = (np.asarray(one, dtype=int) for one in (image, wanted))
    assert found.shape == meant.shape
    assert np.abs(found - meant).max() <= within, np.abs(found - meant).max()


def half_clear(mode):
    """Red on the left, wholly transparent on the right; what lies under the transparent part is black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    return image if mode == "RGBA" else image.convert("LA")


RED_AND_WHITE = Image.new("RGB", (8, 8), "white")
RED_AND_WHITE.paste((255, 0, 0), (0, 0, 4, 8))
GREY_AND_WHITE = RED_AND_WHITE.copy()
GREY_AND_WHITE.paste((76, 76, 76), (0, 0, 4, 8))


def palette(transparent):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.paste(0, (0, 0, 4, 8))
    return saved(image, "PNG", **({"transparency": 1} if transparent else {}))


def sixteen():
    """A grey ramp in 16 bits, of which pillow's own conversion makes white but for its first 256 levels."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    return saved(Image.fromarray(ramp)), Image.fromarray(np.round(ramp / 257).astype(np.uint8)).convert("RGB")


def frames(kind):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    how = {"lossless": True} if kind == "WEBP" else {}
    return saved(first, kind, save_all=True, append_images=[second], duration=100, **how)


def turned():
    """A picture with a mark at its upper left, stored as a camera does that was held upright: turned, with a tag."""
    upright = Image.new("RGB", (16, 32), "white")
    upright.paste((0, 0, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif), upright


def clear_by_a_colour():
    """A PNG in RGB in which one colour stands for transparent."""
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((255, 0, 0), (0, 0, 4, 8))
    return saved(image, "PNG", transparency=(0, 0, 0))


SEEN = {
    "transparent": (saved(half_clear("RGBA")), RED_AND_WHITE, 0),
    "transparent grey": (saved(half_clear("LA")), GREY_AND_WHITE, 0),
    "transparent by a colour": (clear_by_a_colour(), RED_AND_WHITE, 0),
    "transparent palette": (palette(True), RED_AND_WHITE, 0),
    "palette": (palette(False), Image.merge("RGB", (RED_AND_WHITE.split()[1].point(lambda level: 255 - level), *[Image.new("L", (8, 8))] * 2)), 0),
    "grey": (saved(Image.new("L", (4, 4), 90)), Image.new("RGB", (4, 4), (90, 90, 90)), 0),
    "black and white": (saved(Image.new("1", (4, 4), 1)), Image.new("RGB", (4, 4), "white"), 0),
    "CMYK": (saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), Image.new("RGB", (16, 16), (255, 0, 0)), 8),
    "CMYK TIFF": (saved(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "TIFF"), Image.new("RGB", (16, 16), (0, 255, 255)), 0),
    "16 bits": (*sixteen(), 1),
    "GIF": (frames("GIF"), Image.new("RGB", (8, 8), (255, 0, 0)), 0),
    "animated WebP": (frames("WEBP"), Image.new("RGB", (8, 8), (255, 0, 0)), 1),
    "animated PNG": (frames("PNG"), Image.new("RGB", (8, 8), (255, 0, 0)), 0),
    "turned by EXIF": (*turned(), 0),
    "BMP": (saved(drawn(), "BMP"), drawn(), 0),
    "PPM": (saved(drawn(), "PPM"), drawn(), 0),
    "JPEG": (saved(drawn(), "JPEG", quality=100, subsampling=0), drawn(), 8),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEEN)
def test_a_picture_is_what_a_viewer_shows(kind):
    data, wanted, within = SEEN[kind]
    found = pictures.opened(data)
    assert found.mode == "RGB"
    near_to(found, wanted, within)
    near_to(pictures.shown(pictures.held(data)), wanted, within)


def test_a_broken_exif_tag_does_not_drop_a_picture():
    data = saved(drawn(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert pictures.opened(data).size == (64, 64)


def bomb():
    """A PNG of a few hundred bytes that claims 100,000 by 100,000 pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


UNUSABLE = {
    "truncated.png": (saved(drawn())[:150], "broken or truncated image"),
    "truncated.jpg": (saved(drawn(), "JPEG")[:400], "broken or truncated image"),
    "text.png": (b"this is no picture", "not an image of a kind that is read"),
    "vector.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a kind that is read"),
    "empty.png": (b"", "empty image file"),
    "bomb.png": (bomb(), "image of more than 50 million pixels (a decompression bomb?)"),
    "dot.png": (saved(Image.new("RGB", (1, 1))), "image of a single pixel"),
    "floats.tiff": (saved(Image.new("F", (8, 8), 0.5), "TIFF"), "image of floating point numbers, which nothing says how to show"),
}  # fmt: skip


def rows_of(path, type="images", split="train"):
    return recipe.from_data(str(path), type).rows(type, split, 1)


def test_what_is_broken_is_a_counted_drop_that_is_named(tmp_path):
    folder = tmp_path / "cats"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(saved(drawn(number)))
    for name, (data, _) in UNUSABLE.items():
        (folder / name).write_bytes(data)
    found = rows_of(tmp_path)
    reasons = [reason for _, reason in UNUSABLE.values()]
    assert found.dropped == {reason: reasons.count(reason) for reason in reasons}
    assert len(found.kept) + found.held_out == 3
    for name, (_, reason) in UNUSABLE.items():
        assert f"{folder / name}: dropped: {reason}" in found.notes


def test_of_many_drops_the_first_ten_are_named(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}.png").write_bytes(saved(drawn(number)) if number < 5 else b"nothing")
    found = rows_of(tmp_path)
    assert found.dropped["not an image of a kind that is read"] == 25
    assert sum("dropped:" in note for note in found.notes) == 10


def labels(rows):
    return sorted((row["label"], row["image"]["path"]) for row in rows)


def test_a_folder_by_class(tmp_path):
    for number, label in enumerate(("cats", "dogs", "cats")):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"test-{number}.png").write_bytes(saved(drawn(number)))
    (tmp_path / "README.md").write_text("Pictures.")
    (tmp_path / "note.docx").write_text("Pictures.")
    found = rows_of(tmp_path)
    every = [*found.kept, *rows_of(tmp_path, split="held_out").kept]
    assert labels(every) == [("cats", "test-0.png"), ("cats", "test-2.png"), ("dogs", "test-1.png")]
    assert any("1 .docx file" in note for note in found.notes)
    before = recipe.from_data(str(tmp_path), "images").digest("images")
    (tmp_path / "dogs").rename(tmp_path / "wolves")
    assert recipe.from_data(str(tmp_path), "images").digest("images") != before


def test_a_folder_with_splits_holds_out_those_that_are_named_so(tmp_path):
    for number, (split, label) in enumerate((split, label) for split in ("train", "test") for label in ("cats", "dogs")):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / f"{number}.png").write_bytes(saved(drawn(number)))
    assert labels(rows_of(tmp_path).kept) == [("cats", "0.png"), ("dogs", "1.png")]
    assert labels(rows_of(tmp_path, split="held_out").kept) == [("cats", "2.png"), ("dogs", "3.png")]


def test_metadata_beside_files_says_what_is_in_a_row(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(saved(drawn(number)))
    said = [{"file_name": f"in/{number}.png", "text": f"picture {number}"} for number in range(3)]
    table = tmp_path / "metadata.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in said))
    for given in (tmp_path, table):
        every = [row for split in ("train", "held_out") for row in rows_of(given, "image_text", split).kept]
        assert sorted((row["image"]["path"], row["text"]) for row in every) == [
            (f"in/{n}.png", f"picture {n}") for n in range(3)
        ]
        before = recipe.from_data(str(given), "image_text").digest("image_text")
        (tmp_path / "in" / "1.png").write_bytes(saved(drawn(7)))
        assert recipe.from_data(str(given), "image_text").digest("image_text") != before
        (tmp_path / "in" / "1.png").write_bytes(saved(drawn(1)))
    table.write_text(table.read_text() + json.dumps({"file_name": "gone.png", "text": "gone"}) + "\n")
    found = rows_of(tmp_path, "image_text")
    assert found.dropped == {"image file that is not there": 1}
    assert f"{table}:4: dropped: image file that is not there" in found.notes


@pytest.mark.parametrize(
    ("named", "said"),
    [("../out.png", "lies outside of"), ("/etc/hostname", "lies outside of"), ("https://example.org/a.png", "nothing is fetched"), (7, "image is int")],
)  # fmt: skip
def test_a_table_names_only_files_of_its_folder(tmp_path, named, said):
    (tmp_path / "out.png").write_bytes(saved(drawn()))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(json.dumps({"image": named, "text": "a"}) + "\n")
    with pytest.raises(UserError, match=said):
        rows_of(tmp_path / "data", "image_text")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "out.png").write_bytes(saved(drawn()))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "in.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "data" / "a.jsonl").write_text(json.dumps({"image": "in.png", "text": "a"}) + "\n")
    with pytest.raises(UserError, match="lies outside of"):
        rows_of(tmp_path / "data", "image_text")


def test_parquet_and_a_data_set_of_the_library(tmp_path):
    import datasets

    cells = [{"bytes": saved(drawn(number)), "path": f"{number}.png"} for number in range(4)]
    rows = {"image": cells, "label": [0, 1, 0, 1]}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    found = [row for split in ("train", "held_out") for row in rows_of(tmp_path / "a.parquet", split=split).kept]
    assert labels(found) == [("0", "0.png"), ("0", "2.png"), ("1", "1.png"), ("1", "3.png")]
    assert base64.b64decode(found[0]["image"]["bytes"]) in [cell["bytes"] for cell in cells]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "hub" / "train.parquet")
    own = tmp_path / "own.yaml"
    own.write_text(f"type: images\nsources:\n  - hub: {tmp_path}/hub\n")
    made = recipe.load(str(own))
    named = [row for split in ("train", "held_out") for row in made.rows("images", split, 1).kept]
    assert labels(named) == [("cat", "0.png"), ("cat", "2.png"), ("dog", "1.png"), ("dog", "3.png")]


def test_an_archive_of_webdataset(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(3):
            for ending, content in (("png", saved(drawn(number))), ("txt", f"picture {number}".encode()), ("cls", b"1")):
                member = tarfile.TarInfo(f"part/{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    every = [row for split in ("train", "held_out") for row in rows_of(tmp_path, "image_text", split).kept]
    assert sorted((row["image"]["path"], row["text"]) for row in every) == [(f"part/{n}.png", f"picture {n}") for n in range(3)]
    assert {row["label"] for row in rows_of(tmp_path).kept} == {"1"}
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    with pytest.raises(UserError, match=r"a.tar: can't be read"):
        rows_of(tmp_path)


def test_a_picture_and_what_is_nearly_the_same_are_on_one_side(tmp_path):
    for number in range(60):
        image = drawn(number)
        (tmp_path / f"{number}.png").write_bytes(saved(image))
        (tmp_path / f"{number}-again.jpg").write_bytes(saved(image, "JPEG", quality=70))
        (tmp_path / f"{number}-small.png").write_bytes(saved(image.resize((48, 48))))
    train, held_out = rows_of(tmp_path), rows_of(tmp_path, split="held_out")

    def named(rows):
        return {row["image"]["path"].partition(".")[0].partition("-")[0] for row in rows.kept}

    assert len(held_out.kept) >= 3
    assert not named(train) & named(held_out)
    assert len(train.kept) + len(held_out.kept) + train.dropped["nearly the same as a held-out row"] == 180
    assert len(named(train) | named(held_out)) == 60  # no picture is lost to one that only resembles it


def test_a_group_alone_decides_the_side(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(saved(drawn(0)))  # the same picture
    said = [{"file_name": f"{number}.png", "group": f"g{number // 2}"} for number in range(40)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    train, held_out = rows_of(tmp_path), rows_of(tmp_path, split="held_out")
    groups = [{row["group"] for row in rows.kept} for rows in (train, held_out)]
    assert not groups[0] & groups[1]
    assert len(held_out.kept) % 2 == 0
    assert len(train.kept) + len(held_out.kept) == 40


def test_colours_and_shapes_tell_pictures_apart():
    red, blue, same = (pictures.fingerprint(Image.new("RGB", (32, 32), colour)) for colour in ("red", "blue", (250, 2, 0)))
    alike = pictures.near([red])
    assert alike(same)
    assert not alike(blue)
    some = [pictures.fingerprint(drawn(seed)) for seed in range(300)]
    for number, one in enumerate(some):
        others = pictures.near(some[:number] + some[number + 1 :])
        assert not others(one)


@pytest.mark.parametrize("side", [32, 48, 100, 128])
def test_a_line_drawing_is_found_again_at_another_size(side):
    """Thin lines between pixels move the waves of a picture that is not smoothed when it is made smaller."""
    from PIL import ImageDraw

    image = Image.new("RGB", (64, 64), "white")
    draw, rng = ImageDraw.Draw(image), np.random.default_rng(0)
    for _ in range(6):
        draw.line(
            [tuple(map(int, rng.integers(0, 64, 2))) for _ in range(2)], fill=tuple(map(int, rng.integers(0, 255, 3))), width=1
        )
    draw.ellipse((12, 12, 50, 50), outline="black")
    alike = pictures.near([pictures.fingerprint(image)])
    assert alike(pictures.fingerprint(image.resize((side, side))))
    assert alike(pictures.fingerprint(pictures.opened(saved(image, "JPEG", quality=80))))


def test_bands_find_every_hash_within_reach():
    rng = np.random.default_rng(0)
    for _ in range(300):
        sign = int(rng.integers(0, 2**63))
        flipped = sign
        for bit in rng.choice(64, int(rng.integers(0, 5)), replace=False):
            flipped ^= 1 << int(bit)
        assert pictures.near([f"{sign:016x}" + "00" * 12])(f"{flipped:016x}" + "00" * 12)
        other = sign ^ 0b11111
        assert not pictures.near([f"{sign:016x}" + "00" * 12])(f"{other:016x}" + "00" * 12)


def test_pictures_are_read_a_few_at_a_time(tmp_path):
    from pipeline.data import files, sources

    for number in range(120):
        (tmp_path / f"{number:03}.png").write_bytes(saved(Image.new("RGB", (2, 2))))
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps({"file_name": f"{n:03}.png"}) + "\n" for n in range(120)))
    kind = types.load("images")
    tables, beside = sources.apart(sources.expand(str(tmp_path), kind.kinds), kind.beside)
    assert (len(tables), len(beside)) == (1, 120)
    for paths in (beside, tables):
        found = [len(block) for block in files.blocks(paths, at_once=kind.at_once)]
        assert sum(found) == 120
        assert max(found) <= 4 * kind.at_once  # lines that name a file are shorter than was thought
