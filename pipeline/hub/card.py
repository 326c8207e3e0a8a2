"""The model card: what a node is, how to use it, where it comes from and what was measured, from its records alone.

Nothing in it depends on the time or the machine, so that the same node has the same card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.blocks import Block
from pipeline.hub import sections as s
from pipeline.hub import usage
from pipeline.models.families import auto_class

_TASKS = {
    "AutoModelForCausalLM": "text-generation", "AutoModelForMaskedLM": "fill-mask", "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForSequenceClassification": "text-classification", "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering", "AutoModel": "feature-extraction",
    "AutoModelForImageClassification": "image-classification",
}  # fmt: skip
_OF_PICTURES = {
    "vision": "image-feature-extraction",
    "dual_encoder": "zero-shot-image-classification",
    "vision_language": "image-text-to-text",
}  # by family


@dataclass(frozen=True)
class Subject:
    """A node that is pushed, and all that its card tells."""

    repo: str
    tag: str
    records: list[dict[str, Any]]  # cleaned, of all that it descends from; its own is the last
    repositories: Mapping[str, tuple[str, str]]  # outputs → repository and tag of the nodes that are on the hub
    config: Mapping[str, Any]  # the model's config.json
    about: str = ""  # what its stage says comes out of it
    template: bool = False  # whether it has a chat template
    log: Sequence[Mapping[str, Any]] = ()
    block: Block | None = None  # its figures, if these very outputs were measured
    samples: Sequence[Mapping[str, Any]] = ()  # prompts with the answers of several models
    base: str = ""  # hub id of the model whose weights it took
    base_revision: str = ""  # of that model; empty where none is known
    begin: str = "bos_token"  # the tokenizer's attribute that holds what begins a text
    adapter: bool = False
    forced: Sequence[str] = ()
    license: str = "apache-2.0"
    license_given: bool = False
    language: str = ""
    datasets: Sequence[str] = field(default_factory=list)
    watts: float = 0.0
    code: str = ""  # address of the repository with the code
    pipeline_tag: str = ""  # of the hub, where the class of the model does not tell
    shapes: Mapping[str, Sequence[int]] = field(
        default_factory=dict
    )  # of what it is asked with, by name, where that is no text

    @property
    def record(self) -> dict[str, Any]:
        """The node's own record."""
        return self.records[-1]

    @property
    def auto(self) -> str:
        """The library's class that loads the model; empty where none does."""
        return auto_class(self.record["family"], self.config)

    @property
    def trained(self) -> bool:
        """Whether the node trained anything, or adopted a model as it was."""
        return "steps" in self.record


_SECTIONS = (s.title, usage.use, s.warning, s.chain, s.data, s.evaluation, s.samples, s.training, s.limits, s.repeat)


def write(subject: Subject) -> str:
    """Return the card: metadata as YAML, then Markdown."""
    body = "\n\n".join(text for section in _SECTIONS if (text := "\n".join(section(subject)).strip()))
    return f"---\n{_metadata(subject).to_yaml()}\n---\n\n{body}\n"


def _metadata(subject: Subject) -> Any:
    from huggingface_hub import ModelCardData

    tags = ["tristage", subject.record["stage"], "conversational" * subject.template]
    figures = _results(subject)
    return ModelCardData(
        license=subject.license, language=subject.language or None, library_name="transformers" if subject.auto else None,
        pipeline_tag=subject.pipeline_tag or _OF_PICTURES.get(subject.record["family"]) or _TASKS.get(subject.auto), tags=[tag for tag in tags if tag],
        base_model=subject.base or None, datasets=list(subject.datasets) or None,
        metrics=sorted({result.metric_type for result in figures}) or None,
        model_name=subject.repo.split("/")[1] if figures else None, eval_results=figures or None,
    )  # fmt: skip


def _results(subject: Subject) -> list[Any]:
    """Return the node's own figures in model-index form."""
    from huggingface_hub import EvalResult

    block = subject.block
    if block is None or not block.own:
        return []
    data, task = (
        str(subject.record["recipe"]["name"]) or subject.record["node"],
        subject.pipeline_tag or _TASKS.get(subject.auto, "other"),
    )
    return [
        EvalResult(
            task_type=task, dataset_type=data, dataset_name=data, dataset_split="held_out", metric_type=metric,
            metric_value=round(found["value"], 4), metric_name=f"{metric}, 95% interval {found['low']:.4f} to {found['high']:.4f}",
        )
        for metric, found in block.figures.items()
    ]  # fmt: skip
