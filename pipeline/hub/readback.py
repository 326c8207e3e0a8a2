"""What arrived: downloaded by a fresh client into an empty cache, loaded with nothing of ours, held against the node."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.chain import finished
from pipeline.hub.upload import Delivery, Hub
from pipeline.models import idefics, processors
from pipeline.system import hashes
from pipeline.system.errors import WorldError

PROMPTS = ("Who are you?", "Once there was", "What do you know about the sea, and what not?")
_LONGEST = 32  # new tokens of a greedy answer
_TOLERANCE = 1e-3  # of the largest logit, between a base with its adapter and the merged model


@contextmanager
def fetched(hub: Hub, repo: str, revision: str, kind: str = "model") -> Iterator[Path]:
    """Give the folder of a revision, downloaded into an empty cache that goes with the block."""
    with tempfile.TemporaryDirectory() as cache:
        from huggingface_hub import HfApi

        fresh = HfApi(endpoint=hub.api.endpoint)
        where = hub.attempt(
            f"read {repo} back", lambda: fresh.snapshot_download(repo, revision=revision, repo_type=kind, cache_dir=cache)
        )
        yield Path(where)


def differences(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Return in words how downloaded files differ from those that were pushed, by their sha256."""
    missing = [f"{name} is missing" for name in digests if not (folder / name).is_file()]
    there = {name: digest for name, digest in digests.items() if (folder / name).is_file()}
    return missing + [f"{name} is another file" for name, digest in there.items() if hashes.read(folder / name) != digest]


def model(hub: Hub, delivery: Delivery, commit: str, made: Path, loader: str, base: tuple[str, str] | None = None) -> str:
    """Hold a pushed model against the node that it came from; return in words what was compared.

    `loader` names the Auto class; `base` is repository and revision under the adapter, if one was pushed.
    Raises WorldError if anything differs.
    """
    with fetched(hub, delivery.repo, commit) as folder:
        faults = differences(folder, delivery.digests)
        if not faults and loader:
            faults = _behaves(folder, made, loader)
        if not faults and base:
            with fetched(hub, *base) as under:
                faults = adapts(under, folder / "adapter", made, loader)
    if faults:
        raise WorldError(f"{delivery.repo}: what was read back is not what was pushed: {'; '.join(faults)}")
    told = f"{len(delivery.files)} files by digest"
    if loader and _sample_inputs(made):
        told += f", outputs for sample inputs by {loader}"
    elif loader:
        told += f", logits{' and greedy answers' * _generates(loader)} of {len(PROMPTS)} prompts by {loader}"
    return told + (", the adapter on its base" if base else "")


_SEEING = "AutoModelForImageTextToText"

_OUTPUTS = ("logits", "last_hidden_state", "_embeds")


def _generates(loader: str) -> bool:
    return loader in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", _SEEING)


def _sample_inputs(made: Path) -> dict[str, Any]:
    """Return what a node's model is asked with where that is neither text nor pictures."""
    node = finished.read(made)
    return node.stage.sample_inputs(node.options) if node else {}


def _network(folder: Path, loader: str) -> Any:
    import transformers

    return getattr(transformers, loader).from_pretrained(folder, use_safetensors=True, trust_remote_code=False).eval()


def _load(folder: Path, loader: str) -> tuple[Any, Any]:
    import transformers

    if processors.reads_images_alone(str(folder)) or processors.reads_pairs(str(folder)):
        tokenizer: Any = processors.load(str(folder))
    elif loader == _SEEING:
        tokenizer = transformers.AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer, _network(folder, loader)


def _inputs(tokenizer: Any) -> list[Any]:
    """Return the prompts as a user would give them: through the chat template where there is one."""
    how: dict[str, Any] = {"return_tensors": "pt", "return_dict": True}
    if processors.of_pictures(tokenizer):  # which is given a picture drawn for each prompt
        drawn = (np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8) for number in range(len(PROMPTS)))
        if idefics.made(tokenizer) or getattr(tokenizer, "chat_template", None):
            spoken = [
                [{"role": "user", "content": [{"type": "image", "image": one}, {"type": "text", "text": text}]}]
                for text, one in zip(PROMPTS, drawn, strict=True)
            ]
            if idefics.made(tokenizer):
                return [tokenizer(text=[idefics.prompt(tokenizer, turns)], return_tensors="pt") for turns in spoken]
            return [tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, **how) for turns in spoken]
        if processors.tokenizer_of(tokenizer):
            return [
                tokenizer(text=text, images=picture, return_tensors="pt") for text, picture in zip(PROMPTS, drawn, strict=True)
            ]
        return [tokenizer(picture, return_tensors="pt") for picture in drawn]
    if tokenizer.chat_template:
        turns = [[{"role": "user", "content": text}] for text in PROMPTS]
        return [tokenizer.apply_chat_template(turn, add_generation_prompt=True, **how) for turn in turns]
    return [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in PROMPTS]


def _read(network: Any, batch: Any) -> Any:
    """Return what a model makes of a batch; a decoder is asked for its first token, a classifier's reads the text once more."""
    import torch

    more = {}
    if hasattr(network.config, "mask_ratio"):  # which hides patches at random
        more = {"noise": torch.linspace(0, 1, (network.config.image_size // network.config.patch_size) ** 2).unsqueeze(0)}
    if network.config.is_encoder_decoder and not hasattr(network, "classification_head"):
        more = {"decoder_input_ids": torch.tensor([[network.config.decoder_start_token_id or 0]])}
    with torch.no_grad():
        return network(**batch, **more)


def _scores(network: Any, batch: Any) -> Sequence[Any]:
    """Return the outputs that the model is used for, whatever its head: logits, the vectors of a model without one, else all."""
    import torch

    found = {name: value for name, value in _read(network, batch).items() if isinstance(value, torch.Tensor)}
    return [value.float() for name, value in found.items() if name.endswith(_OUTPUTS)] or [*found.values()]


def _behaves(folder: Path, made: Path, loader: str) -> list[str]:
    """Return how a downloaded model's outputs and answers differ from the node's own."""
    import torch

    if given := _sample_inputs(made):
        pairs = zip(*(_scores(_network(where, loader), given) for where in (folder, made)), strict=True)
        return [] if all(torch.equal(one, other) for one, other in pairs) else ["other outputs for sample inputs"]
    (tokenizer, network), (own_tokenizer, own) = _load(folder, loader), _load(made, loader)
    faults = []
    for prompt, batch, own_batch in zip(PROMPTS, _inputs(tokenizer), _inputs(own_tokenizer), strict=True):
        if not torch.equal(batch[network.main_input_name], own_batch[network.main_input_name]):
            faults.append(f"{prompt!r} becomes other tokens" if "input_ids" in batch else "a picture becomes other pixels")
            continue
        pairs = zip(_scores(network, batch), _scores(own, own_batch), strict=True)
        if not all(torch.equal(one, other) for one, other in pairs):
            faults.append(f"other logits for {prompt!r}")
        if _generates(loader):
            said = [made.generate(**batch, do_sample=False, max_new_tokens=_LONGEST) for made in (network, own)]
            if not torch.equal(said[0], said[1]):
                faults.append(f"another greedy answer to {prompt!r}")
    return faults


def adapts(base: Path, adapter: Path, made: Path, loader: str) -> list[str]:
    """Return how a base with the adapter on it differs from the merged model, where both are loaded by the Auto class."""
    import transformers
    from peft import PeftModel

    tokenizer, own = _load(made, loader)
    given = {} if _generates(loader) else {"num_labels": own.config.num_labels}  # the head is the adapter's
    under = getattr(transformers, loader).from_pretrained(base, use_safetensors=True, trust_remote_code=False, **given)
    network = PeftModel.from_pretrained(under, str(adapter)).eval()
    faults = []
    for prompt, batch in zip(PROMPTS, _inputs(tokenizer), strict=True):
        pairs = zip(_scores(network, batch), _scores(own, batch), strict=True)
        if not all(float((one - other).abs().max() / other.abs().max().clamp(min=1.0)) <= _TOLERANCE for one, other in pairs):
            faults.append(f"the adapter on its base gives other logits for {prompt!r}")
    return faults
