"""A finished Llama or Qwen3 model with a byte-level BPE as one GGUF file, written by ggml's own package `gguf`, and read back.

llama.cpp's converter (convert_hf_to_gguf.py) is on no package registry from its authors, and it refuses a tokenizer
whose hash it does not know, which is every tokenizer trained here. For these families little remains to be done: the
package names the tensors, and llama.cpp's rotary embeddings want the rows of Llama's queries and keys in another order.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.system.errors import UserError

TYPES = ("f32", "f16")
_PAIRED = {"llama": True, "qwen3": False}  # model types, and whether llama.cpp rotates rows that stand side by side
_SPLITTER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}  # what llama.cpp calls gpt-2


def fits(folder: Path) -> None:
    """Raise UserError, with every reason, where a folder's model can't be written."""
    if not importlib.util.find_spec("gguf"):
        raise UserError("the package gguf is not installed; make setup-data installs it")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    splitter = {key: (tokenizer["pre_tokenizer"] or {}).get(key) for key in _SPLITTER}
    rope = settings.get("rope_parameters") or {}
    other = "only Llama's and Qwen3's with plain rotary embeddings, no biases and no window are written; llama.cpp's convert_hf_to_gguf.py knows others"
    faults = []
    if (
        settings["model_type"] not in _PAIRED
        or rope.get("rope_type") != "default"
        or any(settings.get(key) for key in ("attention_bias", "mlp_bias", "use_sliding_window"))
    ):
        faults.append(f"{folder / 'config.json'}: {settings['model_type']}: {other}")
    if tokenizer["model"]["type"] != "BPE" or splitter != _SPLITTER or tokenizer["normalizer"]:
        faults.append(f"{folder / 'tokenizer.json'}: not a plain byte-level BPE, the only kind of tokenizer that is written")
    if faults:
        raise UserError(*faults)


def write(folder: Path, path: Path, kind: str) -> None:
    """Write a folder's model with tokenizer and chat template; `kind`: the number type of its matrices."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file
    from transformers import AutoConfig, AutoTokenizer

    settings: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    writer: Any = gguf.GGUFWriter(path, settings.model_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_name(folder.name)
    writer.add_vocab_size(settings.vocab_size)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_rope_dimension_count(settings.head_dim)
    writer.add_key_length(settings.head_dim)
    writer.add_value_length(settings.head_dim)
    writer.add_rope_freq_base(settings.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    _vocabulary(writer, folder, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), settings.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[settings.model_type.upper()], settings.num_hidden_layers)
    heads = {"q_proj": settings.num_attention_heads, "k_proj": settings.num_key_value_heads}
    for name, weights in sorted(load_file(folder / "model.safetensors").items()):
        if name == "lm_head.weight" and settings.tie_word_embeddings:
            continue
        projection = name.split(".")[-2]
        if projection in heads and _PAIRED[settings.model_type]:
            weights = _paired(weights, heads[projection])
        kept = np.float16 if kind == "f16" and weights.ndim > 1 else np.float32
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(weights, kept))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(weights: Any, heads: int) -> Any:
    """Return a projection's rows in llama.cpp's order: the two rows that are rotated together stand side by side."""
    rows, width = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def _vocabulary(writer: Any, folder: Path, tokenizer: Any, size: int) -> None:
    """Write tokens, merges, special tokens and the template without its generation tags."""
    import gguf

    from pipeline.models.tokenization import end_token

    known = {number: token for token, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    kinds = [
        gguf.TokenType.UNUSED if number not in known else gguf.TokenType.CONTROL if number in special else gguf.TokenType.NORMAL
        for number in range(size)
    ]
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([known.get(number, f"[unused {number}]") for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(False)  # the template puts it
    writer.add_bos_token_id(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", tokenizer.chat_template))
        if (end := end_token(tokenizer)) is not None:
            writer.add_eot_token_id(end)


@dataclass(frozen=True)
class Parity:
    """Whether a file gives the greedy answers of the folder that it was made from."""

    runtime: str
    prompts: int
    differ: Sequence[str]  # in words, each answer that is not the folder's


def parity(folder: Path, path: Path, questions: Sequence[str], length: int) -> Parity:
    """Compare a file's greedy answers, and how many tokens it reads, with the folder's; by llama.cpp if xllamacpp is installed."""
    from transformers import AutoConfig, AutoTokenizer

    from pipeline.models.tokenization import render

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    chats = bool(tokenizer.chat_template)
    prompts = [
        render(tokenizer, [{"role": "user", "content": question}], answer_next=True)
        if chats
        else list(tokenizer.encode(question, add_special_tokens=False))
        for question in questions
    ]
    room = int(AutoConfig.from_pretrained(folder, trust_remote_code=False).max_position_embeddings) - max(map(len, prompts))
    length = max(1, min(length, room))
    wanted = _answers(folder, folder, {}, prompts, length)
    if importlib.util.find_spec("xllamacpp"):
        runtime, found = "llama.cpp", _llama_cpp(path, questions, chats, max(map(len, prompts)) + length, length)
    else:
        runtime, found = "transformers", _read_back(folder, path, prompts, length)
    pairs = zip(questions, wanted, found, strict=True)
    return Parity(
        runtime,
        len(questions),
        [f"{question!r}: {theirs} and not {ours}" for question, ours, theirs in pairs if ours != theirs],
    )


def _answers(
    folder: Path, weights: Path, how: dict[str, Any], prompts: Sequence[Sequence[int]], length: int
) -> list[tuple[int, str]]:
    """Return the number of tokens read and the greedy answer to each prompt, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32, trust_remote_code=False, **how).eval()
    settings: Any = GenerationConfig.from_pretrained(folder)
    settings.max_new_tokens = length
    found = []
    for prompt in prompts:
        row = torch.tensor([list(prompt)])
        with torch.no_grad():
            said = model.generate(row, attention_mask=torch.ones_like(row), generation_config=settings)
        found.append((len(prompt), str(tokenizer.decode(said[0, len(prompt) :], skip_special_tokens=True)).strip()))
    return found


def _read_back(folder: Path, path: Path, prompts: Sequence[Sequence[int]], length: int) -> list[tuple[int, str]]:
    """Return the answers of the weights that transformers reads from the file."""
    from transformers import GgufConfig

    how = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
    return _answers(folder, path.parent, how, prompts, length)


def _llama_cpp(path: Path, questions: Sequence[str], chats: bool, context: int, length: int) -> list[tuple[int, str]]:
    """Return the number of tokens read and the answers of llama.cpp, by the file's own tokenizer and template."""
    import torch
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.verbosity = context, 1, -1
    # Its defaults, a half-precision cache and fused attention, change answers where two tokens are almost equally likely.
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cpuparams.n_threads, settings.warmup = torch.get_num_threads(), False
    server = xllamacpp.Server(settings)
    greedy = {"max_tokens": length, "temperature": 0, "cache_prompt": False}
    found = []
    for question in questions:
        if chats:
            answer = server.handle_chat_completions({"messages": [{"role": "user", "content": question}], **greedy})
            text = answer["choices"][0]["message"]["content"]
        else:
            answer = server.handle_completions({"prompt": question, **greedy})
            text = answer["choices"][0]["text"]
        found.append((int(answer["usage"]["prompt_tokens"]), str(text).strip()))
    return found
