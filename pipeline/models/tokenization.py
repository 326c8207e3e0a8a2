"""Tokenizers: train one, load a parent's, give it a chat template, find what ends an answer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.chat_template import Writer
from pipeline.system import hashes, limits, signals
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")  # reserved in pretraining, learned in SFT
MOST = 50_000_000  # characters that a tokenizer is trained on: more of them no longer change which pieces are frequent
_TALK = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})  # by which a template is tried
_PATIENCE, _ROOM = 5, 2**30  # seconds and bytes for a short conversation
_SENTINELS = 100  # spans that span corruption can take out of one text
_LONGEST = 16  # characters of a piece, where a language puts no spaces between words
_RARE = 5  # a word seen less often than this has no vector
_TEMPLATES = Path(__file__).parent / "templates"


def train(texts: Iterable[str], vocab_size: int, max_length: int, kind: str = "bytes") -> PreTrainedTokenizerBase:
    """Train a tokenizer of one of the `KINDS`; UserError where `vocab_size` can't hold what the vocabulary has to."""
    return KINDS[kind](texts, vocab_size, max_length)


def kept(rows: str, settings: Sequence[Any], train: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    """Return the tokenizer that `train` gives, kept by the digest of its rows and settings; where that is empty, anew."""
    from transformers import PreTrainedTokenizerFast

    from pipeline.system.cache import key, made

    def make(folder: Path) -> None:
        train().save_pretrained(folder)

    if not rows:
        return train()
    folder = made(f"tokenizer-{key(rows, *settings)}", make)
    found: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    for told in ("is_local", "local_files_only"):  # of the folder, which it would write down with itself
        found.init_kwargs.pop(told, None)
    return found


def _bytes(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE with the chat tokens reserved; any text in any script can be encoded.

    The end-of-text token also begins a document, so that its first word is predicted from something.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reserved = [END_OF_TEXT, PAD, *CHAT_TOKENS]
    if vocab_size < len(alphabet) + len(reserved):
        raise UserError(
            f"vocab_size: {vocab_size} does not even hold the {len(alphabet)} bytes and {len(reserved)} special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=reserved, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _wrapped(
        tokenizer, max_length, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD,
        additional_special_tokens=list(CHAT_TOKENS),
    )  # fmt: skip


def _wordpiece(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Train WordPiece as BERT has it, case kept: no piece is part of a character, and a Chinese character is one."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer, splitter = normalizers.BertNormalizer(lowercase=False, strip_accents=False), pre_tokenizers.BertPreTokenizer()
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    # The trainer numbers "##a", "##b" in the order of a hash table, which differs from process to process, and breaks
    # ties by number. Listed beforehand they are numbered alike; that makes them special tokens, so the vocabulary moves
    # to a new model.
    inner = [f"##{letter}" for letter in sorted({letter for word in words for letter in word[1:]})]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special + inner, show_progress=False)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator((word for word, count in sorted(words.items()) for _ in range(count)), trainer)
    _fits(trained, vocab_size)
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, splitter, decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _wrapped(
        tokenizer, max_length, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _characters(texts: Iterable[str], vocab_size: int, max_length: int, begin: str = "") -> PreTrainedTokenizerBase:
    """Train a BPE over characters, with the sentinels and the mask of T5 and BART; no piece is part of a character.

    `begin`: what a text begins with: "<s> " for BART, nothing for T5.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    marks = [f"<extra_id_{number}>" for number in range(_SENTINELS)]
    special = ["<pad>", "</s>", "<s>", "<unk>", "<mask>", *marks]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, max_token_length=_LONGEST, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    _fits(tokenizer, vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A </s>", pair=f"{begin}$A </s> $B </s>", special_tokens=[("</s>", 1), ("<s>", 2)]
    )
    return _wrapped(
        tokenizer, max_length, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>", mask_token="<mask>",
        additional_special_tokens=marks,
    )  # fmt: skip


def _words(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Take the most frequent words, in lower case, and single Chinese characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]"]
    tokenizer.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(vocab_size=vocab_size, min_frequency=_RARE, special_tokens=special, show_progress=False),
    )
    return _wrapped(tokenizer, max_length, pad_token="[PAD]", unk_token="[UNK]")


KINDS: dict[str, Callable[[Iterable[str], int, int], PreTrainedTokenizerBase]] = {
    "bytes": _bytes, "wordpiece": _wordpiece, "characters": _characters,
    "begun_characters": partial(_characters, begin="<s> "), "words": _words,
}  # fmt: skip


def _fits(tokenizer: Any, vocab_size: int) -> None:
    if tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"vocab_size: {vocab_size} does not even hold the {tokenizer.get_vocab_size():,} characters and special tokens of the text"
        )


def _wrapped(tokenizer: Any, max_length: int, **named: Any) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, clean_up_tokenization_spaces=False, **named
    )


@cache
def sentinels(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the sentinels, which stand for spans taken out of a text, in order; UserError if there are none."""
    vocabulary = tokenizer.get_vocab()
    marks = [f"<extra_id_{number}>" for number in range(_SENTINELS)]
    found = [vocabulary[mark] for mark in marks if mark in vocabulary]
    if len(found) < 2:
        raise UserError("--parent: its tokenizer has no sentinels <extra_id_0>, <extra_id_1>, …; span corruption needs them")
    return found


def load(folder: str, role: str = "parent") -> PreTrainedTokenizerBase:
    """Load a parent's tokenizer, with a padding token if it has none; UserError, naming the role, if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library in Rust raises Exception itself
        raise UserError(f"--{role} {folder}: no tokenizer can be loaded ({' '.join(str(error).split())[:200]})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the digest of all that decides how a tokenizer encodes text and conversations; empty for one in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    settings = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hashes.digest([settings, special, tokenizer.chat_template, tokenizer.model_input_names])


def template_path(name: str) -> Path:
    """Return the file of a chat template: a path, or the name of one in pipeline/models/templates."""
    for path in (Path(name), _TEMPLATES / name):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in _TEMPLATES.glob("*.jinja")))
    raise UserError(f"chat_template: {name}: no such file; give a path or one of {known}")


def set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str, parent: str) -> list[str]:
    """Give the tokenizer the chosen chat template, or keep its own; return special tokens it had to add.

    Raises UserError, naming `chat_template:` as the remedy, where there is neither.
    """
    if not chat_template:
        if not tokenizer.chat_template:
            raise UserError(
                f"--parent {parent}: its tokenizer has no chat template; set `chat_template: chatml.jinja` or your own file in the profile"
            )
        return []
    text = template_path(chat_template).read_text(encoding="utf-8")
    tokenizer.chat_template = text
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in dict.fromkeys(re.findall(r"<\|[^|'\"\s]+\|>", text)) if token not in vocabulary]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    return missing


def templated_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], answer_next: bool = False) -> str:
    """Return a conversation as the chat template writes it; see `Writer.text`."""
    return Writer(tokenizer).text(messages, answer_next)


def ends_in_time(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where a chat template takes seconds for a short conversation, or says something else each time."""
    with (
        signals.within(
            _PATIENCE, f"chat_template: is not done with two short messages after {_PATIENCE} s; one of its loops is too long"
        ),
        limits.memory(_ROOM),
    ):
        said = {templated_text(tokenizer, _TALK) for _ in range(3)}
    if len(said) > 1:
        raise UserError(
            "chat_template: writes the same conversation differently each time, as by a clock; training could not be repeated"
        )


def another_template(tokenizer: PreTrainedTokenizerBase, own: Any) -> str:
    """Return a warning where the tokenizer's template writes otherwise than the parent's `own`, or there is none; or ""."""
    chosen = tokenizer.chat_template
    if not own:
        return "the parent has no chat template of its own: it was never taught to answer, and this stage does not teach it"
    if own == chosen:
        return ""
    written = templated_text(tokenizer, _TALK)
    tokenizer.chat_template = own
    try:
        same = templated_text(tokenizer, _TALK) == written
    finally:
        tokenizer.chat_template = chosen
    return "" if same else "chat_template: writes a conversation otherwise than the template that the parent was trained with"


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], answer_next: bool = False) -> list[int]:
    """Return the ids of a conversation; see `Writer.encoded`."""
    return Writer(tokenizer).ids(messages, answer_next)


@lru_cache(maxsize=64)
def _end_token(tokenizer: PreTrainedTokenizerBase, size: int, template: str) -> int | None:
    question = [{"role": "user", "content": "a"}]
    prompt = render(tokenizer, question, answer_next=True)
    whole = render(tokenizer, [*question, {"role": "assistant", "content": "b"}])
    special = set(tokenizer.all_special_ids)
    return next((token for token in reversed(whole[len(prompt) :]) if token in special), None)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id of the special token that the template puts after an answer, or None if it puts none."""
    return _end_token(tokenizer, len(tokenizer), str(tokenizer.chat_template))


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end generation: the template's end of an answer and the end of text."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template:
        ends.add(end_token(tokenizer))
    return sorted(token for token in ends if token is not None)
