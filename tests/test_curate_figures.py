"""What curation finds of what was planted in real text, and what it drops beside it; `pytest -m slow -s` prints the table."""

import json
import random
import re
from collections import Counter

import pytest

from pipeline.chain import manifest
from pipeline.curation import contamination, duplicates, rules
from pipeline.data import rows as files
from pipeline.system.errors import UserError

pytest.importorskip("rensa", reason="rensa is not installed: make setup-data")
ROWS, LEVELS, EACH = 3500, (0.95, 0.9, 0.85, 0.8, 0.75, 0.6), 200
NAMES = "anna ben carla david emma felix greta hugo ida jan".split()


def passages(count, words=300):
    """Return passages of real text, each of so many words."""
    from data_recipes import classics

    try:
        documents = [row["text"] for row in classics.text("train", 0)]
    except UserError as error:
        pytest.skip(str(error))
    random.Random(0).shuffle(documents)
    found = []
    for text in documents:
        said = re.findall(r"\S+\s*", text)
        found += ["".join(said[start : start + words]).strip() for start in range(0, len(said) - words, words)]
    return found[:count]


def near(text, level, rng):
    """Return a text with some of its words replaced, of the least similarity that is still at or above a level."""
    said = text.split(" ")
    whole, best = duplicates.shingles({"text": text}), text
    for place in rng.sample(range(len(said)), len(said)):
        said[place] = rng.choice(["thing", "other", "then", "house", "river", "seven"])
        if duplicates.jaccard(whole, duplicates.shingles({"text": " ".join(said)})) < level:
            break
        best = " ".join(said)
    return best


def disguised(text):
    """Return a text that says the same in other case, blanks and marks."""
    return re.sub(r"[,;:.]", lambda mark: f" {mark[0]}", text).upper().replace(" ", "  ")


def curated(run, folder, rows, *flags):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("curate", "--data", path, "--output", folder / "curate", "--rules", "{}", *flags)[0] == 0
    kept = {split: [row["text"] for row in files.read(folder / "curate" / f"{split}.parquet")] for split in files.SPLITS}
    return kept, manifest.read(folder / "curate")["curation"]


@pytest.mark.slow
def test_planted_duplicates_are_found_and_nothing_else_is_dropped(run, tmp_path, capfd):
    rng, real = random.Random(1), passages(ROWS)
    families = {}  # level → (original, planted)
    at = iter(rng.sample(real, EACH * (len(LEVELS) + 1)))
    families["equal"] = [(text, disguised(text)) for text in (next(at) for _ in range(EACH))]
    for level in LEVELS:
        families[level] = [(text, near(text, level, rng)) for text in (next(at) for _ in range(EACH))]
    planted = [one for pairs in families.values() for _, one in pairs]
    rows = [{"text": text} for text in [*real, *planted]]
    rng.shuffle(rows)
    kept, told = curated(run, tmp_path, rows, "--contaminated", "0")
    sides = {text: split for split, texts in kept.items() for text in texts}
    with capfd.disabled():
        print(f"\n{len(real):,} passages of real text, {len(planted):,} planted; kept {len(sides):,}")
        found = {}
        for level, pairs in families.items():
            both = [pair for pair in pairs if all(text in sides for text in pair)]
            across = sum(sides[a] != sides[b] for a, b in both)
            found[level] = 1 - len(both) / len(pairs)
            print(f"planted {level}: {found[level]:.1%} found, {across} with both sides kept across the held-out line")
        dropped = [row["text"] for row in rows if row["text"] not in sides]
        shingles = [duplicates.shingles({"text": text}) for text in sides]
        grams = {}
        for number, one in enumerate(shingles):
            for gram in one.tolist():
                grams.setdefault(gram, []).append(number)
        false = 0
        for text in dropped:
            own = duplicates.shingles({"text": text})
            shared = Counter(number for gram in own.tolist() for number in grams.get(gram, ()))
            false += not any(count / (len(own) + len(shingles[number]) - count) >= 0.8 for number, count in shared.items())
        twins = sum(
            count / (len(one) + len(shingles[number]) - count) >= 0.85
            for at, one in enumerate(shingles)
            for number, count in Counter(n for gram in one.tolist() for n in grams[gram]).items() if number < at
        )  # fmt: skip
        print(
            f"dropped {len(dropped):,}, of which {false} are no near-duplicate of a kept row; kept pairs at 0.85 or more: {twins}"
        )
        print({split: one["dropped"] for split, one in told.items()})
    assert found["equal"] == 1.0
    assert min(found[level] for level in (0.95, 0.9, 0.85)) >= 0.95
    assert max(found[0.75], found[0.6]) <= 0.01
    assert (false, twins) == (0, 0)


@pytest.mark.slow
def test_planted_contamination_is_found_and_nothing_else_is_dropped(run, tmp_path, capfd):
    rng, real = random.Random(2), passages(ROWS)
    rows = [{"text": text} for text in real]
    kept, _ = curated(run, tmp_path, rows, "--contaminated", "0")
    held = rng.sample(kept["held_out"], 120)
    hosts = rng.sample(kept["train"], 4 * len(held))

    def planted(text, words, changed):
        said = text.split(" ")
        start = rng.randrange(len(said) - words)
        piece = said[start : start + words]
        for place in rng.sample(range(words), changed):
            piece[place] = "other"
        host = hosts.pop().split(" ")
        cut = rng.randrange(len(host))
        return " ".join([*host[:cut], *piece, *host[cut:]])

    kinds = {"50 words": (50, 0), "80 words": (80, 0), "80 words, 2 of them others": (80, 2), "12 words, a phrase": (12, 0)}
    made = {kind: [planted(text, *how) for text in held] for kind, how in kinds.items()}
    writer = contamination.Writer(tmp_path / "index")
    writer.add("a held-out row", kept["held_out"])
    writer.close()
    index = contamination.Index(tmp_path / "index")
    with capfd.disabled():
        print()
        share = {}
        for kind, texts in made.items():
            share[kind] = sum(index.holds({"text": text}, 0.5) is not None for text in texts) / len(texts)
            print(f"contaminated by {kind}: {share[kind]:.1%} dropped")
        clean = [text for text in kept["train"] if index.holds({"text": text}, 0.5)]
        print(f"of {len(kept['train']):,} rows where nothing was planted {len(clean)} dropped")
        for text in clean[:5]:
            print("   ", text[:150].replace("\n", " "))
    assert share["50 words"] >= 0.95
    assert share["80 words"] >= 0.99
    assert share["80 words, 2 of them others"] >= 0.95
    assert share["12 words, a phrase"] <= 0.05


FORMS = {
    "email": lambda rng: f"{rng.choice(NAMES)}{rng.choice('._-')}{rng.choice(NAMES)}{rng.choice(['', '7', '+x'])}@{rng.choice(NAMES)}.{rng.choice(['org', 'co.uk', 'de', 'museum'])}",
    "phone": lambda rng: rng.choice(["+49 {}{}{} {}{}{}{}{}", "+1-{}{}{}-{}{}{}-{}{}{}{}", "({}{}{}) 555-{}{}{}{}", "0049 {}{}{}{}{}{}{}{}{}", "+44 (0)20 {}{}{}{} {}{}{}{}", "{}{}{}-555-{}{}{}{}"]).format(*(rng.randrange(1, 10) for _ in range(12))),
    "ip": lambda rng: rng.choice([".".join(str(rng.choice([8, 34, 91, 151, 203])) if n else "93" for n in range(4)), f"2a00:1450:4001:82a::{rng.randrange(1, 9999):x}"]),
    "card": lambda rng: card(rng),
    "iban": lambda rng: iban(rng),
    "key": lambda rng: rng.choice(["hf_", "ghp_", "sk-"]) + "".join(rng.choices("abcdefghijkLMNOP0123456789", k=36)),
}  # fmt: skip
OTHERS = [
    "chapter 3, verses 16-18", "pages 100-200", "in 1984 and 2026", "on 2026-11-26 at 12:30:45", "1,234,567.89 dollars", "version 10.2.3",
    "192.168.0.1", "ISBN 978-3-16-148410-0", "3.14159265358979323846", "order 20261126123456", "room 12-34-56", "@somebody", "C:\\x:1",
    "4111 1111 1111 1112", "a ratio of 16:9", "127.0.0.1:8080", "the years 1914-1918, 1939-1945", "x@y", "std::move", "10 000 000 people",
]  # fmt: skip


def card(rng):
    digits = [4, *(rng.randrange(10) for _ in range(14))]
    total = sum(sum(divmod(2 * digit, 10)) if place % 2 == 0 else digit for place, digit in enumerate(digits))
    text = "".join(map(str, [*digits, -total % 10]))
    return rng.choice(
        [text, " ".join(text[at : at + 4] for at in range(0, 16, 4)), "-".join(text[at : at + 4] for at in range(0, 16, 4))]
    )


def iban(rng):
    account = "".join(str(rng.randrange(10)) for _ in range(18))
    check = 98 - int(f"{account}131400") % 97
    text = f"DE{check:02}{account}"
    return rng.choice([text, " ".join(text[at : at + 4] for at in range(0, 22, 4))])


@pytest.mark.slow
def test_planted_personal_data_is_masked_and_nothing_else_is(capfd):
    rng, real = random.Random(3), passages(2000)
    rule = rules.load("personal_data", {})
    recall = {}
    with capfd.disabled():
        print()
        for kind, form in FORMS.items():
            found = 0
            for number in range(500):
                said, secret = real[number].split(" "), form(rng)
                said.insert(
                    rng.randrange(len(said)), f"{rng.choice(['', '(', 'at '])}{secret}{rng.choice(['', ',', '.', ')'])}"
                )
                found += secret not in rule.changed(" ".join(said), Counter())
            recall[kind] = found / 500
            print(f"{kind}: {recall[kind]:.1%} of 500 masked")
        counts = Counter()
        changed = sum(rule.changed(text, counts) != text for text in real)
        others = sum(rule.changed(f"It was {other} of them.", counts) != f"It was {other} of them." for other in OTHERS)
        print(
            f"masked in {changed} of {len(real):,} passages of real text, in {others} of {len(OTHERS)} numbers and signs that look like it"
        )
    assert min(recall.values()) >= 0.95
    assert (changed, others) == (0, 0)
