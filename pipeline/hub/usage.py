"""How a pushed model is used, in four lines that run as they stand on its card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.models import idefics

if TYPE_CHECKING:
    from pipeline.hub.card import Subject

_ANSWER = "model.generate(**inputs, max_new_tokens=64)[0]"
_REPLY = "It is a pleasure."
_SCORE = "print(model(**inputs).logits[0, 0].item())"  # of a model with one output
_LABELLED = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")  # the base has no such head as yet
ADAPTER = "adapter"  # ends the tag of weights with their adapter
_PROMPT_CUT = 300  # characters of a prompt from the evaluation
# The last line, by the class that loads the model.
_LAST = {
    "AutoModelForCausalLM": f'print(tokenizer.decode({_ANSWER[:-3]}[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    "AutoModelForSeq2SeqLM": f"print(tokenizer.decode({_ANSWER}, skip_special_tokens=True))",
    "AutoModelForMaskedLM": "print(tokenizer.decode(model(**inputs).logits[0].argmax(-1)))",
    "AutoModelForSequenceClassification": "print(model.config.id2label[model(**inputs).logits[0].argmax().item()])",
    "AutoModelForTokenClassification": "print([model.config.id2label[label] for label in model(**inputs).logits[0].argmax(-1).tolist()])",
    "AutoModelForImageClassification": "print(model.config.id2label[model(**inputs).logits[0].argmax().item()])",
    "AutoModelForQuestionAnswering": 'print(tokenizer.decode(inputs["input_ids"][0, found.start_logits.argmax():found.end_logits.argmax() + 1]))',
    "AutoModel": "print(model(**inputs).last_hidden_state.mean(1))",
}  # fmt: skip


def use(subject: Subject) -> Iterator[str]:
    """Yield how the model is loaded and used, and how its adapter is."""
    yield "## Use\n\n```python"
    yield from _code(subject) if subject.auto else _vectors(subject.repo)
    yield "```"
    if subject.adapter:
        labels = f", num_labels={len(subject.config['id2label'])}" if subject.auto in _LABELLED else ""
        pinned = f', revision="{subject.base_revision}"' if subject.base_revision else ""
        base = f'{subject.auto}.from_pretrained("{subject.base}"{pinned}{labels})'
        own = f'"{subject.repo}", revision="{subject.tag}-{ADAPTER}", subfolder="adapter"'
        yield f"\nThe LoRA adapter alone, on the model that it was trained on (`{subject.base}`):\n\n```python"
        yield "from peft import PeftModel"
        yield f"model = PeftModel.from_pretrained({base}, {own})\n```"
    yield f"\nThe revision `{subject.tag}` names exactly these weights."


def _scores(subject: Subject) -> bool:
    """Say whether the model gives a score to a prompt with its answer."""
    return str(subject.record["family"]) == "reward"


def _vectors(repo: str) -> Iterator[str]:
    yield "from gensim.models import KeyedVectors\nfrom huggingface_hub import hf_hub_download"
    yield f'vectors = KeyedVectors.load_word2vec_format(hf_hub_download("{repo}", "vectors.txt"))'
    yield "print(vectors.most_similar(vectors.index_to_key[0]))"


def _pictures(repo: str, name: str) -> Iterator[str]:
    yield f"from PIL import Image\nfrom transformers import {name}, AutoImageProcessor"
    yield f"processor, model = AutoImageProcessor.from_pretrained({repo}), {name}.from_pretrained({repo})"
    yield 'inputs = processor(Image.new("RGB", (64, 64), "red"), return_tensors="pt")  # or Image.open("a.png").convert("RGB")'
    yield _LAST.get(name, "print(model(**inputs).loss)")


def _numbers(repo: str, name: str, shapes: Mapping[str, Sequence[int]]) -> Iterator[str]:
    yield f"import torch\nfrom transformers import {name}"
    yield f"model = {name}.from_pretrained({repo})"
    given = ", ".join(f'"{key}": torch.rand{tuple(shape)}' for key, shape in shapes.items())
    yield f"inputs = {{{given}}}  # or numbers of your own, of that shape"
    yield "print(model(**inputs)[0])"


def _pairs(repo: str) -> Iterator[str]:
    yield "from PIL import Image\nfrom transformers import AutoModel, AutoProcessor"
    yield f"processor, model = AutoProcessor.from_pretrained({repo}), AutoModel.from_pretrained({repo})"
    yield 'picture = Image.new("RGB", (64, 64), "red")  # or Image.open("a.png").convert("RGB")'
    yield 'inputs = processor(text=["red", "blue"], images=picture, padding=True, return_tensors="pt")'
    yield "print(model(**inputs).logits_per_image.softmax(-1))"


def _vision_language(repo: str, name: str, prompt: str, crosses: bool) -> Iterator[str]:
    shown = '{"type": "image"}' if crosses else '{"type": "image", "image": picture}'
    yield f"from PIL import Image\nfrom transformers import {name}, AutoProcessor"
    yield f'processor, model = AutoProcessor.from_pretrained({repo}, backend="pil"), {name}.from_pretrained({repo})'
    yield 'picture = Image.new("RGB", (64, 64), "red")  # or Image.open("a.png").convert("RGB")'
    yield f'turns = [{{"role": "user", "content": [{shown}, {{"type": "text", "text": {prompt!r}}}]}}]'
    if crosses:
        yield "text = processor.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)"
        yield f'before, after = text.removeprefix(processor.tokenizer.bos_token).split("{idefics.MARK}")  # which the processor writes'
        yield 'inputs = processor(text=[[before, picture, after]], return_tensors="pt")'
    else:
        yield 'inputs = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")'
    yield f'print(processor.decode({_ANSWER[:-3]}[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))'


def _code(subject: Subject) -> Iterator[str]:
    repo, name = f'"{subject.repo}", revision="{subject.tag}"', subject.auto
    if str(subject.record["family"]) == "vision_language":
        prompt = (subject.samples or [{"prompt": "What is this?"}])[0]["prompt"][:_PROMPT_CUT]
        yield from _vision_language(repo, name, prompt, crosses=subject.config["model_type"] == idefics.TYPE)
        return
    if str(subject.record["family"]) == "dual_encoder":
        yield from _pairs(repo)
        return
    if subject.shapes:
        yield from _numbers(repo, name, subject.shapes)
        return
    if "patch_size" in subject.config:
        yield from _pictures(repo, name)
        return
    yield f"from transformers import {name}, AutoTokenizer"
    yield f"tokenizer, model = AutoTokenizer.from_pretrained({repo}), {name}.from_pretrained({repo})"
    prompt = (subject.samples or [{"prompt": "Hello!"}])[0]["prompt"][:_PROMPT_CUT]
    turns = [{"role": "user", "content": prompt}]
    if _scores(subject) and subject.template:
        turns.append({"role": "assistant", "content": _REPLY})
        yield f"text = tokenizer.apply_chat_template({turns!r}, tokenize=False).rstrip()  # up to the token that ends the answer"
        yield 'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)'
    elif _scores(subject):
        yield f'inputs = tokenizer({prompt!r}, {_REPLY!r}, return_tensors="pt")'
    elif subject.template:
        yield f'inputs = tokenizer.apply_chat_template({turns!r}, add_generation_prompt=True, return_dict=True, return_tensors="pt")'
    elif name == "AutoModelForQuestionAnswering":
        yield 'inputs = tokenizer("Who saw the dog?", "The cat saw the dog.", return_tensors="pt")  # a question, and where its answer is'
        yield "found = model(**inputs)  # the answer ends where it begins, at the first token, where there is none"
    elif name == "AutoModelForCausalLM":  # as training and evaluation began each text
        yield f'inputs = tokenizer(tokenizer.{subject.begin} + {prompt!r}, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)'
    else:
        text = 'f"The story of {tokenizer.mask_token} is known."' if name == "AutoModelForMaskedLM" else '"The story of"'
        yield f'inputs = tokenizer({text}, return_tensors="pt", return_token_type_ids=False)'
    yield _SCORE if _scores(subject) else _several(subject) or _LAST.get(name, "print(model(**inputs))")


def _several(subject: Subject) -> str:
    """Return the last line for a head that gives a value, or any number of labels; empty for others."""
    if subject.config.get("problem_type") == "regression":
        scaled = " * model.config.value_std + model.config.value_mean" if "value_std" in subject.config else ""
        return f"print(model(**inputs).logits[0, 0].item(){scaled})"
    if subject.config.get("problem_type") != "multi_label_classification":
        return ""
    given = (subject.record["config"].get("task_options") or {}).get("threshold", 0.5)
    least = subject.config.get("label_threshold", given)
    return (
        f"print([model.config.id2label[n] for n, p in enumerate(model(**inputs).logits[0].sigmoid().tolist()) if p >= {least}])"
    )
