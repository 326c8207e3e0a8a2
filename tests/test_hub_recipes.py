"""Recipes of public data sets, on folders of the form and the schema that their repositories have."""

import json

import pytest
import yaml

from pipeline import ROOT
from pipeline.data import hubs, recipe, split, types
from pipeline.system.errors import UserError

WEB = {"id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "url": "https://a.example/1"}


def user(text):
    return {"content": text, "role": "user"}


def assistant(text):
    return {"content": text, "role": "assistant"}


def talk(number, said="no_think"):
    return [user(f"Question {number}?"), assistant(f"Answer {number} of {said}.")]


def message(number, name, parent, role, rank):
    return {
        "message_id": f"{number}{name}", "parent_id": parent and f"{number}{parent}", "user_id": "u", "created_date": "2023-01-01", "text": f"{name} {number}",
        "role": role, "lang": "en", "review_count": 3, "review_result": True, "deleted": False, "rank": rank, "synthetic": False, "model_name": None,
        "detoxify": {"toxicity": 0.1}, "message_tree_id": f"{number}p", "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [1]}, "labels": {"name": ["spam"], "value": [0.0], "count": [3]},
    }  # fmt: skip


def trees(numbers):
    shape = [("p", None, "prompter", None), ("a", "p", "assistant", 1), ("b", "p", "assistant", 0)]
    return [message(number, *one) for number in numbers for one in shape]


def hh(number, answer):
    return f"\n\nHuman: Question {number}?\n\nAssistant: Well?\n\nHuman: So?\n\nAssistant: {answer} {number}"


KWARGS = {"custom_instructions": "", "enable_thinking": False, "python_tools": None, "xml_tools": None}
LANGUAGE = {
    "language": "deu",
    "language_script": "Latn",
    "language_score": 0.99,
    "minhash_cluster_size": 1,
    "top_langs": "{}",
    "file_path": "s3://a",
}
# Recipe → its repository, and by subset and split the rows: number → row.
PUBLIC = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", {"sample-10BT": {"train": lambda n: WEB | {
        "text": f"A page {n}.", "file_path": "s3://a", "language": "en", "language_score": 0.9, "token_count": 3, "score": 3.1, "int_score": 3}}}),
    "fineweb-2": ("HuggingFaceFW/fineweb-2", {subset: {name: lambda n, s=subset, m=name: WEB | LANGUAGE | {"text": f"{s} {m} {n}."} for name in ("train", "test")}
                                              for subset in ("deu_Latn", "fra_Latn")}),
    "wikipedia": ("wikimedia/wikipedia", {"20231101.en": {"train": lambda n: {"id": str(n), "url": "https://a", "title": f"T {n}", "text": f"T {n} is a thing."}}}),
    "smoltalk2": ("HuggingFaceTB/smoltalk2", {"SFT": {name: lambda n, m=name: {"messages": talk(n, m), "chat_template_kwargs": KWARGS | (
        {"custom_instructions": "Be brief."} if "rewrite" in m else {}), "source": m} for name in (
        *(f"smoltalk_smollm3_{part}_no_think" for part in ("smol_magpie_ultra", "smol_summarize", "smol_rewrite", "systemchats_30k", "explore_instruct_rewriting",
                                                          "everyday_conversations")), "tulu_3_sft_personas_instruction_following_no_think")}}),
    "tulu-3-sft": ("allenai/tulu-3-sft-mixture", {"default": {"train": lambda n: {"id": str(n), "messages": talk(n), "source": "ai2"}}}),
    "tulu-3-pairs": ("allenai/llama-3.1-tulu-3-8b-preference-mixture", {"default": {"train": lambda n: {
        "id": str(n), "source": "a", "prompt": f"Question {n}?", "chosen": talk(n), "rejected": talk(n, "no")}}}),
    "ultrafeedback": ("HuggingFaceH4/ultrafeedback_binarized", {"default": {name: lambda n, m=name: {
        "prompt": f"{m} {n}", "prompt_id": str(n), "chosen": [user(f"{m} {n}"), assistant("A")], "rejected": [user(f"{m} {n}"), assistant("B")],
        "messages": [user(f"{m} {n}"), assistant("A")], "score_chosen": 8.0, "score_rejected": 3.0} for name in ("train_prefs", "test_prefs", "train_sft")}}),
    "hh-rlhf": ("Anthropic/hh-rlhf", {"default": {name: lambda n, m=name: {"chosen": hh(f"{m} {n}", "Yes"), "rejected": hh(f"{m} {n}", "No")}
                                                  for name in ("train", "test")}}),
    "oasst2": ("OpenAssistant/oasst2", {"default": {"train": lambda n: trees([n]), "validation": lambda n: trees([100 + n])}}),
    "no_robots": ("HuggingFaceH4/no_robots", {"default": {name: lambda n, m=name: {"prompt": f"{m} {n}", "prompt_id": str(n), "messages": [
        {"content": "Be a poet.", "role": "system"}, user(f"{m} {n}"), assistant("A")], "category": "Chat"} for name in ("train", "test")}}),
    "gsm8k": ("openai/gsm8k", {"main": {name: lambda n, m=name: {"question": f"{m}: {n} + 1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
                                        for name in ("train", "test")}}),
    "kto-mix": ("trl-lib/kto-mix-14k", {"default": {name: lambda n, m=name: {"prompt": [user(f"{m} {n // 2}")], "completion": [assistant(f"A {n}")],
                                                                             "label": n % 2 == 0} for name in ("train", "test")}}),
}  # fmt: skip
ROWS = 40  # of each split
FIRST = {
    "fineweb-edu": {"text": "A page 1."},
    "fineweb-2": {"text": "deu_Latn train 1."},
    "wikipedia": {"text": "T 1 is a thing."},
    "smoltalk2": {"messages": [{"role": "system", "content": "Be brief."}, *talk(1, "smoltalk_smollm3_smol_rewrite_no_think")]},
    "tulu-3-sft": {"messages": talk(1)},
    "tulu-3-pairs": {"prompt": talk(1)[:1], "chosen": talk(1)[1:], "rejected": talk(1, "no")[1:]},
    "ultrafeedback": {"prompt": [user("train_prefs 1")], "chosen": [assistant("A")], "rejected": [assistant("B")]},
    "hh-rlhf": {"prompt": [user("Question train 1?"), assistant("Well?"), user("So?")], "chosen": [assistant("Yes train 1")],
                "rejected": [assistant("No train 1")]},
    "oasst2": {"messages": [user("p 1"), assistant("b 1")]},
    "no_robots": {"messages": [{"role": "system", "content": "Be a poet."}, user("train 1"), assistant("A")]},
    "gsm8k": {"messages": [user("train: 1 + 1?"), assistant("It is <<1+1=2>>2.\n#### 2")]},
    "kto-mix": {"prompt": [user("train 0")], "completion": [assistant("A 1")], "label": False},
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folders in place of the repositories: parquet files and a README that names subsets and splits, as the hub has them."""
    import datasets

    for name, subsets in PUBLIC.values():
        configs = []
        for subset, splits in subsets.items():
            files = []
            for part, row in splits.items():
                path = tmp_path / name / subset / f"{part}-00000-of-00001.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                made = [row(number) for number in range(ROWS)]
                made = [one for item in made for one in (item if isinstance(item, list) else [item])]
                datasets.Dataset.from_list(made).to_parquet(path)
                files.append({"split": part, "path": f"{subset}/{path.name}"})
            configs.append({"config_name": subset, "data_files": files})
        (tmp_path / name / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    for name in ("load_dataset", "load_dataset_builder"):
        call = getattr(datasets, name)
        here = lambda name, *given, call=call, **named: call(str(tmp_path / name), *given, **named)  # noqa: E731
        monkeypatch.setattr(datasets, name, here)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_every_recipe_of_a_hub_is_tried_here():
    named = {path.stem for path in (ROOT / "data_recipes").glob("*.yaml") if "hub:" in path.read_text()}
    assert named == set(PUBLIC) == set(FIRST)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_recipe_reads_the_schema_of_its_repository(hub, name):
    given = recipe.load(name)
    (type,) = given.types()
    train, held_out = (given.rows(type, side, 1) for side in recipe.SPLITS)
    every = [*train.kept, *held_out.kept]
    assert FIRST[name] in every
    repository, subsets = PUBLIC[name]
    read = [(source.hub.get("subset") or "default", source.hub.get("split", "train")) for source in given.given]
    assert all(source.hub["name"] == repository for source in given.given)
    assert len(every) + train.dropped.total() == ROWS * len(read)
    assert all(part in subsets[subset] for subset, part in read)
    assert train.dropped.keys() <= {split.SAME}
    assert len(train.formats) == 1
    assert held_out.kept
    assert train.held_out == len(held_out.kept)
    asked = [{split.normalised(types.load(type).asked(row)) for row in side} for side in (train.kept, held_out.kept)]
    assert not asked[0] & asked[1]
    if any(source.held_out for source in given.given):
        assert len(train.kept) == ROWS, "all of the training split is trained on, since a split is there to hold out"


def test_another_subset_is_named_behind_the_recipe(hub):
    found = recipe.load("fineweb-2:fra_Latn")
    assert {row["text"].split()[0] for row in found.rows("text", "train", 1).kept} == {"fra_Latn"}
    assert (found.name, found.digest("text") == recipe.load("fineweb-2").digest("text")) == ("fineweb-2:fra_Latn", False)
    with pytest.raises(UserError, match="recipe: hh-rlhf:english: none of its sources has a subset"):
        recipe.load("hh-rlhf:english")
    with pytest.raises(UserError, match="recipe: world:x: no such recipe"):
        recipe.load("world:x")


@pytest.mark.parametrize(("failures", "works"), [(1, True), (9, False)])
def test_a_hub_that_fails_in_the_middle_is_asked_again(hub, monkeypatch, capsys, failures, works):
    import datasets

    load, left = datasets.load_dataset, [failures]

    def failing(*given, **named):
        left[0] -= 1
        if left[0] >= 0:
            raise datasets.exceptions.DatasetGenerationError("broken") from ConnectionError("reset by peer")
        return load(*given, **named)

    monkeypatch.setattr(datasets, "load_dataset", failing)
    monkeypatch.setattr(hubs, "_WAITS", (0.0,))
    monkeypatch.setattr(hubs, "_silent", [])
    if works:
        assert recipe.load("wikipedia").rows("text", "train", 1).kept
    else:
        with pytest.raises(
            UserError, match="wikimedia/wikipedia: the hub failed: broken: reset by peer; what was loaded is kept"
        ):
            recipe.load("wikipedia").rows("text", "train", 1)
        with pytest.raises(UserError, match=r"openai/gsm8k: is not asked for, since https?://.* failed before"):
            recipe.load("gsm8k").rows("messages", "train", 1)
    assert capsys.readouterr().out.count("asking again") == 1


SMALL = {
    "pretrain": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 300,
        "max_length": 256,
        "warmup_steps": 1,
    },
    "sft": {"max_length": 256, "warmup_steps": 1},
    "dpo": {"max_length": 256, "warmup_steps": 1},
}


def test_profile_smol_chains_these_data_sets(hub, run, tmp_path):
    """With the profile's own files, a few rows and a tiny model in place of its sizes."""
    parent = []
    for name, sizes in SMALL.items():
        small = sizes | {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
        flags = [word for key, value in small.items() for word in (f"--{key}", value)]
        config = ROOT / "stages" / "profiles" / "smol" / f"{name}.yaml"
        status, out, err = run(name, "--config", config, *parent, "--output", tmp_path / "runs" / name, *flags)
        assert status == 0, out + err
        record = json.loads((tmp_path / "runs" / name / "manifest.json").read_text())
        assert record["recipe"]["kept"] > 30
        assert record["recipe"]["dropped"].keys() <= {split.SAME}
        parent = ["--parent", tmp_path / "runs" / name]
