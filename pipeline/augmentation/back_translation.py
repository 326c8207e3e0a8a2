"""Back-translation: each text is translated and translated back, and so says the same in other words (Sennrich et al. 2016).

The further rows stand beside the others, so an epoch has up to twice as many; those in which nothing changed are left out.
Translations are the likeliest ones by greedy or beam search, so the same models give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.augmentation import Augmentation
from pipeline.data.types import DatasetType, Row
from pipeline.models import loading, tokenization
from pipeline.system import process
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.system.hardware import device

_THERE, _BACK = "translator", "back_translator"  # roles of the two encoder-decoders
_TOKENS = 8192  # of the texts that are translated together


@dataclass(frozen=True)
class BackTranslation(Augmentation):
    """Add each row in the words that come back from another language."""

    changes = "rows"
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {_THERE: ("seq2seq",), _BACK: ("seq2seq",)}
    optional = (_BACK,)

    prefix: str = option("", "text before what is translated, such as `translate English to German: `")
    back_prefix: str = option("", "text before what is translated back")
    num_beams: int = option(1, "beams of the search for a translation; 1 is greedy", at_least=1)
    max_new_tokens: int = option(128, "tokens of a translation, at most", at_least=1)

    def further(self, rows: Sequence[Row], kind: DatasetType, models: Mapping[str, str]) -> Iterator[tuple[int, Row]]:
        """Yield the rows whose texts came back in other words; one translator goes both ways where there is no other."""
        columns = [name for name in kind.asks if any(isinstance(row.get(name), str) for row in rows[:1])]
        texts = sorted({row[name] for row in rows for name in columns if name in row})
        there = self._translated(_THERE, models[_THERE], self.prefix, texts)
        role = _BACK if _BACK in models else _THERE
        back = dict(zip(texts, self._translated(role, models[role], self.back_prefix, there), strict=True))
        for number, row in enumerate(rows):
            said = {name: back[row[name]] for name in columns if name in row}
            if all(said.values()) and any(said[name] != row[name] for name in said):
                yield number, row | said

    def _translated(self, role: str, folder: str, prefix: str, texts: Sequence[str]) -> list[str]:
        """Return the translation of each text by the model that has a role."""
        import torch

        model, tokenizer = _opened(folder, role, texts)
        found = [""] * len(texts)
        longest = min(getattr(model.config, "max_position_embeddings", None) or 512, tokenizer.model_max_length)
        how = {"truncation": True, "max_length": longest, "split_special_tokens": True}  # no text becomes a control token
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        progress = process.reading("back-translation")
        while order:
            read = [prefix + texts[number] for number in order[:256]]
            sizes = [len(ids) for ids in tokenizer(read, **how)["input_ids"]]
            count = max(1, _TOKENS // (max(max(sizes), self.max_new_tokens) * self.num_beams))
            numbers, order = order[:count], order[count:]
            batch = tokenizer(read[:count], padding=True, return_tensors="pt", **how)
            ids = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                made = model.generate(**ids, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=self.num_beams)
            for number, text in zip(numbers, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
                found[number] = text.strip()
            left = len(order)
            progress.tell(lambda: f"{len(texts) - left:,} of {len(texts):,} texts translated")  # noqa: B023
        return found


def _opened(folder: str, role: str, texts: Sequence[str]) -> tuple[Any, Any]:
    """Return an encoder-decoder and its tokenizer; UserError where the tokenizer is not its own."""
    from transformers import AutoModelForSeq2SeqLM

    model: Any = loading.from_pretrained(AutoModelForSeq2SeqLM, folder, role=role).to(device()).eval()
    tokenizer = tokenization.load(folder, role)
    head = [text for text in texts[:100] if text.strip()]
    ids = tokenizer(head, split_special_tokens=True)["input_ids"] if head else []
    if head and not any(map(str.strip, tokenizer.batch_decode(ids, skip_special_tokens=True))):
        # The library makes an empty tokenizer where its files are missing.
        raise UserError(f"--{role} {folder}: its tokenizer knows no word of the texts; is tokenizer.json missing?")
    if len(tokenizer) > (size := model.get_input_embeddings().weight.shape[0]):
        raise UserError(f"--{role} {folder}: the tokenizer has {len(tokenizer)} tokens, but the model only {size} embeddings")
    return model, tokenizer


AUGMENTATION = BackTranslation
