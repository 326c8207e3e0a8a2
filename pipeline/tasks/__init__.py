"""Supervised tasks, one file each; the file's name is the task's name.

A task defines what a row becomes (`examples`), what the model is trained on (`losses`), what it predicts (`predict`),
how good predictions are (`figures`, described by `metrics`), a trivial baseline (`baseline`) and stronger `rivals`. Its
fields are its options.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.evaluation.metrics import Metric
from pipeline.system import extensions
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from pipeline.data.recipe import Rows
    from pipeline.data.types import Row
    from pipeline.evaluation.intervals import Figure

Example = dict[str, Any]
Prediction = dict[str, Any]  # what a model predicts for one row, with its probability
_WHOLE = ("AutoModel", "AutoModelForSeq2SeqLM")  # classes that add no head to a parent
ENCODERS = ("masked", "discriminator", "embedder", "causal", "seq2seq")  # families whose hidden states a new head can read

# Metrics that several tasks give.
ACCURACY = Metric("accuracy", "share of the labels that are right, one for each text or each word", "share", "more")
MACRO_F1 = Metric(
    "macro_f1", "F1 averaged over the labels, so that rare labels count as much as frequent ones", "share", "more"
)
PEARSON = Metric("pearson", "linear correlation of the predictions with the true values; 1 is perfect", "score", "more")
SPEARMAN = Metric(
    "spearman",
    "rank correlation: how well the order of the predictions is the order of the true values; 1 is perfect",
    "score",
    "more",
)
EXACT_MATCH = Metric(
    "exact_match",
    "share of the answers that are exactly right; answers to questions are compared without case, punctuation and articles",
    "share",
    "more",
)


_HELPERS = ("evaluator",)  # modules of this folder that are no task


class Task(ABC):
    """What a file in this folder defines as a frozen dataclass, under the name `TASK`."""

    reads: ClassVar[str]  # the dataset type of its rows
    family: ClassVar[str]  # of the model that it hands on
    accepts: ClassVar[tuple[str, ...]]  # families of a parent
    auto: ClassVar[str]  # the Auto class of transformers that builds and loads the model
    outputs: ClassVar[int] = 0  # of its head, where it doesn't follow from the labels
    problem_type: ClassVar[str] = ""  # what transformers calls the problem, where one class of models serves several
    needs: ClassVar[Mapping[str, str]] = {}  # module → distribution that its metrics need and our dependencies lack
    metrics: ClassVar[tuple[Metric, ...]]  # one for each name that `figures` can give
    primary: ClassVar[str]  # the metric that decides the verdict and early stopping; more is better
    baseline_name: ClassVar[str]  # what `baseline` predicts, in words
    accumulates: ClassVar[bool] = True  # whether a batch may be read in parts
    parent_too: ClassVar[bool] = False  # whether a parent can do the task as it is, so that what training adds is told
    keeps: ClassVar[Literal["", "positions", "tokens", "pixels"]] = ""  # what of its examples no augmentation may change
    tunes: ClassVar[str] = ""  # what `tune` sets in a model's configuration
    tuned: bool = False  # whether it does, for which rows are held back
    weights: ClassVar[Mapping[str, float]] = {"loss": 1.0}  # parts of the loss
    unread: ClassVar[tuple[str, ...]] = ()  # options of the stage that mean nothing for its rows
    labelled: float = 1.0  # share of the training rows of each label that it is given

    def labels(self, rows: Iterable[Row]) -> list[str]:
        """Return the labels that a model of this task chooses from, in the order of their numbers; empty where it has none."""
        return []

    def processor(self, folder: str) -> Any:
        """Return what makes the model's input of a row, as it lies in a folder or on a hub: for text the tokenizer."""
        from pipeline.models import tokenization

        return tokenization.load(folder)

    def sample(self, dataset: Any, tokenizer: Any) -> Mapping[str, Any]:
        """Return the columns of the first example that a model reads, by which a merged adapter is proved."""
        read = ("input_ids", "token_type_ids", *(["labels"] if self.family == "seq2seq" else []))
        return {key: ids for key, ids in dataset[0].items() if key in read}

    def load_model(self, parent: str, labels: Sequence[str] = (), random: bool = False, rows: Sequence[Row] = ()) -> Any:
        """Return the parent as a model of the task, in fp32; its head is new, unless it has one for these labels.

        With `random` all weights are random, in the same sizes: the control. `rows` are those that it will be trained on.
        UserError where there is no such model.
        """
        import transformers

        from pipeline.models import loading

        auto: Any = getattr(transformers, self.auto)
        try:
            settings = transformers.AutoConfig.from_pretrained(parent, trust_remote_code=False)
            had = [settings.id2label[number] for number in sorted(settings.id2label or {})]
            same = not labels or sorted(had) == sorted(labels)
            if not same:
                settings.id2label = dict(enumerate(labels))
                settings.label2id = {name: number for number, name in enumerate(labels)}
            settings.num_labels = self.outputs or settings.num_labels
            settings.problem_type = self.problem_type or settings.problem_type
            settings.use_cache = self.family == "seq2seq"
            if not random and self.auto in _WHOLE:
                return loading.from_pretrained(auto, parent, config=settings)
            model = auto.from_config(settings, trust_remote_code=False).float()
            if same and not random and type(model).__name__ in (settings.architectures or []):
                return loading.from_pretrained(auto, parent, config=settings)
            if not random:
                model = _with_body(model, loading.from_pretrained(transformers.AutoModel, parent))
            if rows:
                self.begin(model, rows)
            return model
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--parent {parent}: {self.auto} can't load it ({' '.join(str(error).split())[:200]})") from None

    def begin(self, model: Any, rows: Sequence[Row]) -> None:
        """Set what a new head can know from the rows that it will be trained on, before the first step."""
        return

    def labels_of(self, row: Row) -> Iterable[str]:
        """Return the labels of a row, for tasks with labels."""
        return ()

    @abstractmethod
    def examples(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield examples with the number of their row under `row`; count in `rows` what is dropped and truncated."""

    def longest(self, max_length: int) -> int:
        """Return how many positions the model needs."""
        return max_length

    def collator(self, tokenizer: PreTrainedTokenizerBase, dataset: Dataset) -> Any:
        """Return the function that makes a batch of examples."""
        from pipeline.tasks._batches import Padding

        return Padding(int(tokenizer.pad_token_id))

    def arrange(self, dataset: Dataset, seed: int) -> Dataset:
        """Return the examples of one epoch, which may repeat some."""
        return dataset

    @abstractmethod
    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return how many items each part of the loss has in a batch."""

    @abstractmethod
    def losses(self, model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each part of the loss, summed over its items."""

    @abstractmethod
    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return a model's prediction for each row; count in `rows` what it could not read."""

    def tune(self, model: Any, rows: Sequence[Row], predictions: Sequence[Prediction]) -> list[Prediction]:
        """Set in the model's configuration what is chosen by its predictions of rows that it was not trained on.

        Returns the predictions under what was chosen.
        """
        return list(predictions)

    def tunable(self, rows: Sequence[Row]) -> None:
        """Raise UserError, before the first step, where rows can't decide what is chosen."""
        return

    def predictor(self, folder: str, max_length: int) -> Callable[[Rows], list[Prediction]]:
        """Return what predicts rows with the fine-tuned model in a folder."""
        from pipeline.system.hardware import device

        model, tokenizer = self.load_model(folder).to(device()).eval(), self.processor(folder)
        return lambda rows: self.predict(model, tokenizer, rows, max_length)

    def threshold_of(self, folder: str) -> float:
        """Return the probability from which on the fine-tuned model in a folder says a label, for tasks with several of them."""
        return 0.0

    def average(self, predictions: Sequence[Sequence[Prediction]], thresholds: Sequence[float] = ()) -> list[Prediction]:
        """Return the predictions of an ensemble: for each row the mean of what its models say.

        `thresholds`: `threshold_of` each model. UserError where predictions of the task have no mean.
        """
        raise UserError(f"predictions of {type(self).__name__} can't be averaged; those of {', '.join(averaging())} can")

    @abstractmethod
    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the predictions of a trivial baseline."""

    def rivals(self, training: Sequence[Row], rows: Sequence[Row]) -> Iterator[tuple[str, list[Prediction]]]:
        """Yield the name and the predictions of each model that could do without pretraining, such as one on TF-IDF."""
        return iter(())

    @abstractmethod
    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return the metrics of predictions."""

    def confusion(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, int]]:
        """Return true label → predicted label → count, for tasks with labels."""
        return {}

    def by_label(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Return label → precision, recall, F1 and rows, for tasks with labels."""
        return {}

    def save(self, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write a plain checkpoint that transformers loads."""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _with_body(model: Any, body: Any) -> Any:
    """Return the model with the weights of another one's body; ValueError if a part of its body would stay random.

    The library finds a body by its name, which differs in some classes (Llama's for questions); it would leave such a
    body random and only log it.
    """
    heads = {name for name, module in model.named_children() if module is not model.base_model}
    heads -= {name for name, _ in body.named_children()}
    found = model.base_model.load_state_dict(body.state_dict(), strict=False)
    random = [name for name in found.missing_keys if name.partition(".")[0] not in {*heads, "pooler"}]
    if random:
        raise ValueError(f"the parent has no {', '.join(random[:3])}")
    return model


def known() -> list[str]:
    """Return the names of all tasks."""
    return extensions.known(__name__, _HELPERS)


def averaging() -> list[str]:
    """Return the names of the tasks whose predictions can be averaged."""
    return [name for name in known() if declared(name).average is not Task.average]


def declared(name: str) -> type[Task]:
    """Return a task's class by name; UserError naming those that exist."""
    found: type[Task] = extensions.declared(__name__, name, known(), "task", "task", "TASK")
    return found


def load(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Return a task by name with its options; UserError where there is none, or packages that it needs are missing."""
    kind = declared(name)
    if missing := [package for module, package in kind.needs.items() if importlib.util.find_spec(module) is None]:
        raise UserError(f"task: {name} needs {' and '.join(missing)}, which its metrics use; `make setup-data` installs them")
    found: Task = extensions.configured(kind, options, "task_options")
    return found
