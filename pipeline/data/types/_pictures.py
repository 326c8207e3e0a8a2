"""What the types of rows with a picture share: how data sets write one, and where a named one lies."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.data import doubts, pictures, sources
from pipeline.data.doubts import Doubt
from pipeline.data.types import Convert, DatasetType, Format, Malformed, Messages, Row
from pipeline.models import parts

IMAGE, IMAGES = "image", "images"
TEXTS = ("text", "caption")  # columns that say what a picture shows
TAG = "<image>"  # of a picture's place in a text, as LLaVA's data has it
_MARK = re.compile("\ufdd0(\\d+)\ufdd1")  # stands for a place while a conversation is converted; no text holds such characters
_DATA = re.compile(r"data:image/[\w.+-]+;base64,")
_BYTES, _LEAST = 10, 400  # bytes of a picture that take as long as a character of text, and characters that each takes at least
NAMES = (IMAGE, "img", "file_name")  # columns that hold a picture, or name its file


def _read(name: str, folder: Path) -> dict[str, Any]:
    """Return the bytes of a picture and its name, or why there are none."""
    if "://" in name:
        return {"path": name, "refused": "is an address, and nothing is fetched; give the file, or its bytes"}
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return {"path": name, "refused": f"lies outside of {folder}, the folder of the table that names it"}
    try:
        return {"path": name, "bytes": path.read_bytes()}
    except (OSError, ValueError):
        return {"path": name, "fault": "image file that is not there"}


def cell(value: Any) -> dict[str, str]:
    """Return what a row holds of a picture; Malformed where the column holds none."""
    if isinstance(value, bytes):
        return pictures.held(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("bytes"), (bytes, str)):
        if isinstance(value, Mapping) and "refused" in value:
            raise Malformed(f"image: {value['path']} {value['refused']}")
        if isinstance(value, Mapping) and ("fault" in value or value.get("bytes", "") is None):
            return {"path": str(value.get("path") or ""), "fault": str(value.get("fault") or "no image")}
        if value is None:
            return {"path": "", "fault": "no image"}
        raise Malformed(f"image is {type(value).__name__}, neither a file nor {{bytes, path}}")
    if isinstance(value["bytes"], str):
        if "hash" in value:  # of a row that was written here
            return dict(value)
        return pictures.held(_decoded(value["bytes"]), str(value.get("path") or ""))
    return pictures.held(value["bytes"], str(value.get("path") or ""))


def _decoded(text: str) -> bytes:
    """Return what base64 says; Malformed where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("image: its bytes are a text that is not base64") from None


def _without_bytes(one: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in one.items() if key != "bytes"}


def label(row: Mapping[str, Any]) -> str:
    """Return the label of a row, "" for none; Malformed where it is no single one."""
    value = row.get("label")
    if isinstance(value, (list, Mapping)):
        raise Malformed(f"label is {type(value).__name__}, not one label")
    return "" if value is None else str(value)


def _taken(value: Any, found: list[Any]) -> Any:
    """Return a value with a mark in place of each picture among the parts of its contents; `found` gets those pictures.

    Of a part that only says where a picture is, None.
    """
    if isinstance(value, Mapping):
        return {key: _taken(item, found) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if not any(isinstance(part, Mapping) and part.get("type") in (IMAGE, "image_url") for part in value):
        return [_taken(item, found) for item in value]
    kept = []
    for part in value:
        if isinstance(part, Mapping) and part.get("type") in (IMAGE, "image_url"):
            found.append(_named(part))
            kept.append({"type": "text", "text": f"\ufdd0{len(found) - 1}\ufdd1"})
        else:
            kept.append(part)
    return kept


def _named(part: Mapping[str, Any]) -> Any:
    """Return the picture of a part, as data sets and servers write it; None where it lies in a column."""
    value = next((part[name] for name in (IMAGE, "image_url", "url", "path") if part.get(name) is not None), None)
    return value.get("url") if isinstance(value, Mapping) and "url" in value else value


def _tagged(value: Any, found: list[Any]) -> Any:
    """Return a value with a mark in place of each tag in its texts."""
    if isinstance(value, Mapping):
        return {key: item if key in ("role", "from") else _tagged(item, found) for key, item in value.items()}
    if isinstance(value, list):
        return [_tagged(item, found) for item in value]
    if not isinstance(value, str):
        return value
    before, *after = value.split(TAG)
    for text in after:
        found.append(None)
        before += f"\ufdd0{len(found) - 1}\ufdd1{text}"
    return before


def message_picture(value: Any) -> dict[str, str]:
    """Return what a row holds of a picture that a message has, also as a data URL; Malformed where it has none."""
    if isinstance(value, str):
        head = _DATA.match(value)
        if not head:
            raise Malformed(f"image: {value[:80]} can't be read here; give the file beside its table, or its bytes")
        return pictures.held(_decoded(value[head.end() :]))
    return cell(value)


def _split(content: str) -> str | list[dict[str, Any]]:
    """Return the content of a message with places for its marks; a text that has none as it is."""
    pieces = _MARK.split(content)
    if len(pieces) == 1:
        return content
    found: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            found.append({"type": IMAGE})
        elif piece:
            found.append({"type": "text", "text": piece})
    return found


def _restored(turns: Messages, given: Sequence[Any], column: Iterator[Any]) -> tuple[Messages, list[Any]]:
    """Return messages with their places, and the pictures in these: those of the parts, else the next of the column."""
    images = []
    for turn in turns:
        for mark in _MARK.findall(turn["content"]):
            own = given[int(mark)]
            if (picture := own if own is not None else next(column, None)) is not None:
                images.append(picture)
    return [turn | {"content": _split(turn["content"])} for turn in turns], images


def with_pictures(convert: Convert) -> Convert:
    """Return what converts a row of conversations in which pictures may stand, in parts, or as tags where a column holds them.

    A row without any is converted as by `convert`; in one with pictures `images` holds them in the order of their places.
    """

    def converted(row: Mapping[str, Any]) -> Row | list[Row]:
        given: list[Any] = []
        columns = [row[name] for name in (IMAGE, IMAGES) if row.get(name) is not None]
        listed = [one for value in columns for one in (value if isinstance(value, list) else [value])]
        plain = {key: value for key, value in row.items() if key not in (IMAGE, IMAGES)}
        bare = {key: _taken(value, given) for key, value in plain.items()}
        if not given and row.keys() & {IMAGE, IMAGES}:
            bare = {key: _tagged(value, given) for key, value in plain.items()}
        if not given and not listed:
            return convert(row if plain.keys() == row.keys() else plain)
        if not given:
            name = IMAGES if row.get(IMAGES) else IMAGE
            raise Malformed(
                f'{name} is what the text is about, but no text says where it stands: write {TAG} there, or a part {{"type": "image"}}; '
                f"`ignore: [{name}]` in a recipe leaves it out"
            )
        made = convert(bare)
        for one in made if isinstance(made, list) else [made]:
            column, images = iter(listed), list[Any]()
            for key, turns in one.items():
                if isinstance(turns, list):  # no label
                    one[key], found = _restored(turns, given, column)
                    images += found
            one[IMAGES] = [message_picture(picture) for picture in [*images, *column]]
        return made

    return converted


def with_picture_formats(formats: Sequence[Format]) -> tuple[Format, ...]:
    """Return formats of conversations that also read the pictures in them."""
    return tuple(one._replace(convert=with_pictures(one.convert), more=one.more | {IMAGE, IMAGES}) for one in formats)


class Conversations(DatasetType):
    """Messages in which pictures may stand: {"type": "image"} is the place of one, and the n-th place has the n-th of `images`."""

    beside = sources.PICTURES

    def located(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a row with the bytes of each picture that it names, which lies in or under the folder of its table."""

        def read(value: Any) -> Any:
            if isinstance(value, str):
                return value if _DATA.match(value) else _read(value, folder)
            if isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
                return _read(value["path"], folder)
            return [read(one) for one in value] if isinstance(value, list) else value

        def within(value: Any) -> Any:
            if isinstance(value, Mapping):
                if value.get("type") == IMAGE and (named := _named(value)) is not None:
                    return {"type": IMAGE, IMAGE: read(named)}
                return {key: within(item) for key, item in value.items()}
            return [within(item) for item in value] if isinstance(value, list) else value

        return {key: read(value) if key in (IMAGE, IMAGES) else within(value) for key, value in raw.items()}

    def unseen(self, row: Row, asked: str, answers: Sequence[str]) -> str | None:
        """Return why pictures and places of a row don't fit, or None; `asked` and `answers`: columns of messages."""
        images = row.get(IMAGES, [])
        if fault := next((one["fault"] for one in images if "fault" in one), None):
            return str(fault)
        if any(parts.count([turn]) for turn in row[asked] if turn["role"] == "assistant") or any(
            map(parts.count, (row[side] for side in answers))
        ):
            return "image in an answer"
        places = parts.count(row[asked])
        if places > len(images):
            return "image tag without an image"
        return "image without an image tag" if places < len(images) else None

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return pictures that are the same in all rows that have any."""
        return [doubts.same_picture([row.get(IMAGES, ()) for row in rows])]

    def asked(self, row: Row) -> str:
        """Return what is asked; of a row with pictures what these look like, so that all about a picture is on one side."""
        if row.get(IMAGES):
            return " ".join(one["hash"] for one in row[IMAGES])
        return super().asked(row)

    def near(self, held_out: Iterable[Row]) -> Callable[[Row], bool]:
        """Return what says whether a picture of a row looks nearly like one of a held-out row."""
        alike = pictures.near(one["hash"] for row in held_out for one in row.get(IMAGES, ()))
        return lambda row: any(alike(one["hash"]) for one in row.get(IMAGES, ()))

    def told(self, row: Row) -> Row:
        """Return the row without the bytes of its pictures."""
        if not row.get(IMAGES):
            return row
        return row | {IMAGES: [_without_bytes(one) for one in row[IMAGES]]}

    def thumbnails(self, row: Row) -> list[str]:
        """Return its pictures."""
        return [pictures.thumbnail(pictures.shown(one)) for one in row.get(IMAGES, ())]


class Pictures(DatasetType):
    """A picture a row, and what else a type says of it."""

    asks = (IMAGE,)
    kinds = frozenset({"jsonl", "ndjson", "json", "csv", "tsv", "parquet", sources.ARCHIVE, *sources.PICTURES})
    beside = sources.PICTURES
    at_once, names_dropped = 50, True

    def located(self, raw: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return a row with the bytes of each picture that it names, which lies in or under the folder of its table."""
        found = dict(raw)
        for name in NAMES:
            value = raw.get(name)
            if isinstance(value, str):
                found[name] = _read(value, folder)
            elif isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
                found[name] = _read(value["path"], folder)
        return found

    def characters(self, raw: Mapping[str, Any]) -> int:
        """Return a tenth of a picture's bytes, which are decoded faster than text is tokenised, and of a small one 400."""
        cells = (value.values() if isinstance(value, Mapping) else [value] for value in raw.values())
        size = sum(len(one) for values in cells for one in values if isinstance(one, (bytes, str)))
        return max(_LEAST, size // _BYTES)

    def fault(self, row: Row) -> str | None:
        """Return why the picture can't be shown."""
        found: str | None = row[IMAGE].get("fault")
        return found

    def doubts(self, rows: Sequence[Row]) -> list[Doubt]:
        """Return pictures that are all the same."""
        return [doubts.same_picture([[row[IMAGE]] for row in rows])]

    def asked(self, row: Row) -> str:
        """Return what the picture looks like, its perceptual hash, so that it is on one side wherever it lies and whatever is said of it."""
        return str(row[IMAGE].get("hash", ""))

    def near(self, held_out: Iterable[Row]) -> Callable[[Row], bool]:
        """Return what says whether a picture looks nearly like a held-out one."""
        alike = pictures.near(map(self.asked, held_out))
        return lambda row: alike(self.asked(row))

    def told(self, row: Row) -> Row:
        """Return the row without the bytes of its picture."""
        return row | {IMAGE: _without_bytes(row[IMAGE])}

    def thumbnails(self, row: Row) -> list[str]:
        """Return its picture."""
        return [pictures.thumbnail(pictures.shown(row[IMAGE]))]
