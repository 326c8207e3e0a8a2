"""The same setups as plain scripts of transformers and trl, as their documentation writes them, with their defaults."""

from __future__ import annotations

from dataclasses import fields

from tests.zoo import Setup
from tests.zoo.runner import LENGTH


def plain(setup: Setup) -> int:
    """Train with the libraries alone, which warn of what they warn of: tristage silences them for itself."""
    import warnings

    import datasets
    import transformers
    from datasets import load_dataset

    transformers.logging.set_verbosity_warning()
    datasets.logging.set_verbosity_warning()
    warnings.resetwarnings()

    rows = load_dataset("json", data_files=str(setup.data), split="train", cache_dir=str(setup.folder / "cache"))
    scripts = {"pretrain": _pretrain, "sft": _sft, "dpo": _dpo, "kto": _kto, "reward": _reward, "finetune": _finetune}
    scripts[setup.stage](setup, rows)
    return 0


def _arguments(kind, setup: Setup, **more):
    known = {one.name for one in fields(kind)}
    given = {"num_train_epochs": 1, "per_device_train_batch_size": 8, "max_length": LENGTH} | setup.options
    return kind(str(setup.folder / "out"), **{key: value for key, value in given.items() if key in known}, **more, report_to="none", use_cpu=True)  # fmt: skip


def _tokenizer(setup: Setup):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setup.model)
    if setup.template:
        tokenizer.chat_template = setup.template
    return tokenizer


def _adapter(setup: Setup):
    from peft import LoraConfig

    known = {one.name for one in fields(LoraConfig)}
    return LoraConfig(**{"target_modules": "all-linear"} | {key: value for key, value in setup.options.items() if key in known})


def _sft(setup: Setup, rows) -> None:
    from trl import SFTConfig, SFTTrainer

    SFTTrainer(
        str(setup.model), _arguments(SFTConfig, setup), train_dataset=rows, processing_class=_tokenizer(setup), peft_config=_adapter(setup)
    ).train()  # fmt: skip


def _conversation(row):
    if not isinstance(row["prompt"], str):
        return row
    sides = {
        name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected", "completion") if name in row
    }
    return {"prompt": [{"role": "user", "content": row["prompt"]}], **sides}


def _dpo(setup: Setup, rows) -> None:
    from trl import DPOConfig, DPOTrainer

    DPOTrainer(
        str(setup.model), args=_arguments(DPOConfig, setup), train_dataset=rows.map(_conversation), processing_class=_tokenizer(setup),
        peft_config=_adapter(setup),
    ).train()  # fmt: skip


def _kto(setup: Setup, rows) -> None:
    from transformers import AutoModelForCausalLM
    from trl import KTOConfig, KTOTrainer

    KTOTrainer(
        AutoModelForCausalLM.from_pretrained(setup.model), args=_arguments(KTOConfig, setup), train_dataset=rows.map(_conversation),
        processing_class=_tokenizer(setup), peft_config=_adapter(setup),
    ).train()  # fmt: skip


def _reward(setup: Setup, rows) -> None:
    from trl import RewardConfig, RewardTrainer

    RewardTrainer(
        str(setup.model), args=_arguments(RewardConfig, setup), train_dataset=rows.map(_conversation), processing_class=_tokenizer(setup)
    ).train()  # fmt: skip


def _finetune(setup: Setup, rows) -> None:
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer, labels = _tokenizer(setup), sorted(set(rows["label"]))
    model = AutoModelForSequenceClassification.from_pretrained(setup.model, num_labels=len(labels))

    def encoded(row):
        return tokenizer(row["text"], truncation=True, max_length=LENGTH) | {"labels": labels.index(row["label"])}

    rows = rows.map(encoded, remove_columns=rows.column_names)
    Trainer(
        model, _arguments(TrainingArguments, setup), DataCollatorWithPadding(tokenizer), rows, processing_class=tokenizer
    ).train()


def _pretrain(setup: Setup, rows) -> None:
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(setup.models / "pretrain")
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: setup.options[name] for name in names if name in setup.options}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), intermediate_size=64, **sizes))
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=LENGTH), remove_columns=rows.column_names)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model, _arguments(TrainingArguments, setup), collator, rows, processing_class=tokenizer).train()
