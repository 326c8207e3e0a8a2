"""An invented world of drawn scenes: one to three coloured shapes on white, each at a place of its own.

`text` describes scenes in words and asks about them, `image_text` is their pictures with captions, and `messages` asks several
questions about a picture. Some pairs of colour and shape are `RESERVED`: text and captions tell of them, and no picture or
question of `messages`, or of `preference` in `absent_things`, does, so that nothing but pretraining can have shown them. A scene is
held out by what is in it, in every type of rows alike. Each row is decided by seed, type, split and its number.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pipeline.data import pictures
from pipeline.data.judge import Judge, Question, first_sentence

PLACES = ("top left", "top right", "bottom left", "bottom right")  # in the order in which they are read
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (220, 40, 40), "green": (40, 165, 60), "blue": (40, 80, 220),
    "yellow": (240, 205, 40), "purple": (145, 50, 175), "black": (30, 30, 30),
}  # fmt: skip
RESERVED = frozenset({("green", "circle"), ("red", "square"), ("blue", "triangle"), ("yellow", "cross"), ("purple", "ring")})
DESCRIPTIONS, CAPTIONS, CONVERSATIONS, HELD_OUT = 24_000, 24_000, 48_000, 400
ASKED = 300  # scenes of each sort that the judge asks about
SIDE = 32  # pixels of a picture; a place is a quarter of it
_FINE = 4  # a picture is drawn so many times larger, and made smaller, so that its edges are smooth
_SHARE = 0.1  # of the scenes that are held out
_TALKS = 1 / 4  # of the conversations ask two questions
_NUMBERS = ("no", "one", "two", "three")
KINDS = ("colour", "count", "where", "at", "everything")
OF_A_THING = ("colour", "where", "at")  # kinds of questions about one thing, which may be a reserved pair


class Thing(NamedTuple):
    """A shape in a picture."""

    place: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def pair(self) -> tuple[str, str]:
        """Its colour and shape."""
        return self.colour, self.shape


Scene = tuple[Thing, ...]  # in the order of their places
Asked = tuple[str, str]  # question and right answer


def is_held_out(scene: Scene) -> bool:
    """Say whether a scene is held out: by what is in it, whatever the seed."""
    return hashlib.sha256(repr([tuple(thing) for thing in scene]).encode()).digest()[0] < _SHARE * 256


def drawn(rng: random.Random) -> Scene:
    """Return a scene of one to three things."""
    places = rng.sample(PLACES, rng.choice((1, 2, 2, 3, 3)))
    return tuple(Thing(place, rng.choice(list(COLOURS)), rng.choice(SHAPES)) for place in sorted(places, key=PLACES.index))


def is_reserved(scene: Scene) -> bool:
    """Say whether a scene holds a pair of colour and shape that only pretraining shows."""
    return any(thing.pair in RESERVED for thing in scene)


def scene_of(rng: random.Random, split: str, wanted: Callable[[Scene], bool] = lambda scene: True) -> Scene:
    """Return the first scene of a split that is as wanted."""
    while True:
        scene = drawn(rng)
        if is_held_out(scene) == (split == "held_out") and wanted(scene):
            return scene


def only_known(scene: Scene) -> bool:
    """Say whether a scene holds no reserved pair, as every scene of SFT and DPO does."""
    return not is_reserved(scene)


def picture(scene: Scene, rng: random.Random, name: str) -> dict[str, str]:
    """Return what a row holds of a picture of a scene: places within a quarter, sizes and shades differ from one to the next."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE * _FINE, SIDE * _FINE), "white")
    pen, cell = ImageDraw.Draw(image), SIDE * _FINE // 2
    for thing in scene:
        half = rng.uniform(0.32, 0.44) * cell
        row, column = divmod(PLACES.index(thing.place), 2)
        x, y = (cell * (at + 0.5) + rng.uniform(-1, 1) * (0.48 * cell - half) for at in (column, row))
        fill = tuple(max(0, min(255, level + rng.randint(-15, 15))) for level in COLOURS[thing.colour])
        _draw(pen, thing.shape, x, y, half, fill)
    file = io.BytesIO()
    image.resize((SIDE, SIDE), Image.Resampling.BOX).save(file, "PNG")
    return pictures.held(file.getvalue(), name)


def png(cell: dict[str, str]) -> bytes:
    """Return the file of a picture that a row holds."""
    return base64.b64decode(cell["bytes"])


def _draw(pen: Any, shape: str, x: float, y: float, half: float, fill: tuple[int, ...]) -> None:
    box = (x - half, y - half, x + half, y + half)
    if shape == "circle":
        pen.ellipse(box, fill=fill)
    elif shape == "square":
        pen.rectangle(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=round(half * 0.45))
    else:
        arm = half * 0.3
        pen.rectangle((x - half, y - arm, x + half, y + arm), fill=fill)
        pen.rectangle((x - arm, y - half, x + arm, y + half), fill=fill)


def caption(scene: Scene) -> str:
    """Return all that is in a picture, in the order of the places."""
    parts = [f"a {thing} at the {thing.place}" for thing in scene]
    told = ", and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    return f"{told[0].upper()}{told[1:]}."


def where(thing: Thing) -> Asked:
    """Ask for the place of a thing."""
    return f"Where is the {thing}?", f"The {thing} is at the {thing.place}."


def at_place(thing: Thing) -> Asked:
    """Ask what is at a place."""
    return f"What is at the {thing.place}?", f"At the {thing.place} is a {thing}."


def colour(thing: Thing) -> Asked:
    """Ask for the colour of a thing, whose shape nothing else in its scene has."""
    return f"What colour is the {thing.shape}?", f"The {thing.shape} is {thing.colour}."


def everything(scene: Scene) -> Asked:
    """Ask for all that is in a scene."""
    return "What is in the picture?", caption(scene)


def count(scene: Scene, what: str, number: int) -> Asked:
    """Ask how many there are of what is there: of a shape, of a colour, or of all."""
    several = f"{what}es" if what.endswith("s") else f"{what}s"
    told = f"are {_NUMBERS[number]} {several}" if number > 1 else f"is one {what}"
    return f"How many {several} are there?", f"There {told}."


def alone(scene: Scene, pick: Callable[[Thing], Any]) -> list[Thing]:
    """Return the things that share with no other one what `pick` says of them."""
    told = [pick(thing) for thing in scene]
    return [thing for thing in scene if told.count(pick(thing)) == 1]


def _counted(scene: Scene, rng: random.Random) -> Asked:
    thing, kind = rng.choice(scene), rng.randrange(3)
    if kind == 0:
        return count(scene, "shape", len(scene))
    if kind == 1:
        return count(scene, thing.shape, sum(other.shape == thing.shape for other in scene))
    return count(scene, f"{thing.colour} shape", sum(other.colour == thing.colour for other in scene))


def asked(scene: Scene, rng: random.Random) -> dict[str, Asked]:
    """Return a question of each kind that a scene allows, with its answer."""
    things = {kind: answerable(scene, kind) for kind in OF_A_THING}
    found = {kind: _ABOUT[kind](rng.choice(known)) for kind, known in things.items() if known}
    return found | {"count": _counted(scene, rng), "everything": everything(scene)}


_ABOUT: dict[str, Callable[[Thing], Asked]] = {"colour": colour, "where": where, "at": at_place}


def answerable(scene: Scene, kind: str) -> list[Thing]:
    """Return the things of a scene about which a question of a kind has one answer."""
    if kind == "colour":
        return alone(scene, lambda thing: thing.shape)
    return alone(scene, lambda thing: thing.pair) if kind == "where" else list(scene)


def missing(scene: Scene, rng: random.Random, apart: bool) -> tuple[str, str]:
    """Return a colour and a shape that are no thing of a scene; `apart`: both are there, on different things."""
    there = {thing.pair for thing in scene}
    colours, shapes = {thing.colour for thing in scene}, {thing.shape for thing in scene}
    pairs = [
        (one, shape)
        for one in COLOURS for shape in SHAPES
        if (one, shape) not in there | RESERVED and (one in colours and shape in shapes) == apart
    ]  # fmt: skip
    return rng.choice(pairs)


def can_be_apart(scene: Scene) -> bool:
    """Say whether a scene holds a colour and a shape that are no reserved pair and no thing of it together."""
    there = {thing.pair for thing in scene}
    return any((one.colour, other.shape) not in there | RESERVED for one in scene for other in scene)


def _described(scene: Scene, rng: random.Random) -> str:
    """Return a text about a scene: its things in any order and words, then questions and answers, and what is not there."""
    if rng.random() < 0.3:
        told = [caption(scene)]
    else:
        told = [rng.choice((where, at_place))(thing)[1] for thing in rng.sample(scene, len(scene))]
    questions = list(asked(scene, rng).values())
    told += [" ".join(one) for one in rng.sample(questions, rng.randint(2, len(questions)))]
    if rng.random() < 0.4:
        there = {thing.pair for thing in scene}
        apart = can_be_apart(scene) and rng.random() < 0.5
        pair = missing(scene, rng, apart) if rng.random() < 0.8 else rng.choice(sorted(RESERVED - there))
        told.insert(rng.randint(len(scene), len(told)), absence(*pair))
    return " ".join(told)


def absence(colour: str, shape: str) -> str:
    """Return that there is no such thing."""
    return f"There is no {colour} {shape}."


def seeded(seed: int, kind: str, split: str, size: int) -> Iterator[random.Random]:
    """Yield a generator of random numbers for each row of a split; the held-out split has fewer rows."""
    yield from (random.Random(f"{seed}/{kind}/{split}/{number}") for number in range(size if split == "train" else HELD_OUT))


def text(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Yield descriptions of scenes, reserved pairs among them."""
    for rng in seeded(seed, "text", split, DESCRIPTIONS):
        yield {"text": _described(scene_of(rng, split), rng)}


def image_text(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield pictures with captions, reserved pairs among them."""
    for number, rng in enumerate(seeded(seed, "image_text", split, CAPTIONS)):
        scene = scene_of(rng, split)
        yield {"image": picture(scene, rng, f"{split}-{number}.png"), "text": caption(scene)}


def messages(split: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yield conversations about a picture without reserved pairs: a question, or two."""
    for number, rng in enumerate(seeded(seed, "messages", split, CONVERSATIONS)):
        scene = scene_of(rng, split, only_known)
        shown = picture(scene, rng, f"{split}-{number}.png")
        turns: list[dict[str, Any]] = []
        for question, answer in _some(asked(scene, rng), rng):
            turns += [user(question, with_picture=not turns), {"role": "assistant", "content": answer}]
        yield {"messages": turns, "images": [shown]}


def _some(found: dict[str, Asked], rng: random.Random) -> list[Asked]:
    """Return one question, or at times two: what was told before need not be looked for. Places are learned last, and asked for twice as often."""
    kinds = [*found, "where"] if "where" in found else [*found]
    return [found[kind] for kind in dict.fromkeys(rng.choices(kinds, k=2 if rng.random() < _TALKS else 1))]


def user(question: str, with_picture: bool = True) -> dict[str, Any]:
    """Return a user's message, with the picture before the question or without."""
    parts = [{"type": "image"}] if with_picture else []
    return {"role": "user", "content": [*parts, {"type": "text", "text": question}] if parts else question}


class Seen(Judge):
    """Asks about unseen scenes of known pairs, one question of each kind, and about things whose pair only pretraining has shown."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield the questions; the kind of those about reserved pairs is `reserved`."""
        for number in range(ASKED):
            rng = random.Random(f"{seed}/questions/known/{number}")
            scene = scene_of(rng, "held_out", only_known)
            shown = picture(scene, rng, f"known-{number}.png")
            for kind, (question, answer) in asked(scene, rng).items():
                yield Question(question, answer, kind=kind, about=shown["path"], images=(png(shown),))
        for number in range(ASKED):
            rng = random.Random(f"{seed}/questions/reserved/{number}")
            scene = scene_of(rng, "held_out", is_reserved)
            shown = picture(scene, rng, f"reserved-{number}.png")
            for kind in OF_A_THING:
                if things := [thing for thing in answerable(scene, kind) if thing.pair in RESERVED]:
                    question, answer = _ABOUT[kind](rng.choice(things))
                    yield Question(question, answer, kind="reserved", about=shown["path"], images=(png(shown),))

    def right(self, reply: str, question: Question) -> bool:
        """Say whether the first sentence of a reply is the answer."""
        return first_sentence(reply) == question.answer


JUDGE = Seen()
