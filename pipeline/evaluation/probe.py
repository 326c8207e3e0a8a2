"""What frozen features know: a linear classifier on the means of a model's states, cross-validated by group.

Needs scikit-learn (the extra `probe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.tokens import text_ids
from pipeline.evaluation.intervals import LEVEL, Estimate
from pipeline.models.tokenization import load
from pipeline.system.hardware import device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDS, REPEATS = 5, 10  # one way to cut groups into folds moves a difference by 0.8 points, ten by 0.2
_BATCH = 32


def features(folder: Path, texts: Sequence[str], random: bool = False, seed: int = 0) -> np.ndarray:
    """Return the mean over tokens of the states of a model's encoder, of all layers side by side, the embeddings first.

    Which layer knows most differs by objective: the last of a discriminator, say, holds little but its answer (Peters
    et al. 2018, section 5.1, mix all layers for this reason). (texts, (layers + 1) · hidden) float32. With `random` the
    weights are new ones of the same sizes, which is the control.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = load(str(folder))
    torch.manual_seed(seed)
    model = (
        AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False)
        if random
        else AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    )
    model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(device()).eval()
    found = []
    for start in range(0, len(texts), _BATCH):
        batch = tokenizer(
            list(texts[start : start + _BATCH]),
            padding=True,
            truncation=True,
            return_tensors="pt",
            return_token_type_ids=False,
            split_special_tokens=True,
        ).to(device())
        with torch.no_grad():
            told = model(**batch, output_hidden_states=True)
        mask = batch["attention_mask"].unsqueeze(-1)
        layers = [*told.hidden_states[:-1], told.last_hidden_state]
        means = [(states * mask).sum(1) / mask.sum(1) for states in layers]
        found.append(torch.cat(means, 1).float().cpu().numpy())
    return np.concatenate(found)


def mean_vectors(
    table: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], random: bool = False, seed: int = 0
) -> np.ndarray:
    """Return the mean of the known words' vectors of each text: what `features` is of a model that has nothing but vectors.

    `table`: (words, size). (texts, size) float32.
    """
    import torch

    torch.manual_seed(seed)
    vectors = torch.empty_like(table).normal_() if random else table.detach()
    found = []
    for text in texts:
        ids = [token for token in text_ids([text], tokenizer)[0] if token != tokenizer.unk_token_id]
        found.append(np.asarray(vectors[ids].mean(0) if ids else vectors[:1].mean(0) * 0))
    return np.stack(found)


@dataclass(frozen=True)
class Probe:
    """Which items a classifier got right, and the groups that they belong to."""

    right: np.ndarray  # (items,) between 0 and 1, the share of the classifiers that did
    groups: np.ndarray  # (items,)

    def accuracy(self, against: Probe | None = None, resamples: int = 2000, seed: int = 0) -> Estimate:
        """Return the share that is right, or its difference to a rival's, with an interval over whole groups."""
        names, place = np.unique(self.groups, return_inverse=True)
        gain = self.right - (against.right if against else 0)
        sums, sizes = np.bincount(place, gain), np.bincount(place).astype(float)
        counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        low, high = np.quantile((counts @ sums) / (counts @ sizes), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(gain.mean()), float(low), float(high), len(names))


def mean(probes: Sequence[Probe]) -> Probe:
    """Return the mean of several probes of the same items."""
    return Probe(np.mean([found.right for found in probes], axis=0), probes[0].groups)


def classify(inputs: Any, labels: Sequence[str], groups: Sequence[str]) -> Probe:
    """Return what logistic regression gets right, trained on all groups but those of the fold; `inputs` may be sparse.

    The folds are drawn again and again, and what is right is the mean over all draws.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if isinstance(inputs, np.ndarray):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.01))
    else:
        model = LogisticRegression(max_iter=2000, C=10.0)
    right = np.zeros(len(labels))
    for draw in range(REPEATS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=draw)
        right += cross_val_predict(model, inputs, np.array(labels), groups=np.array(groups), cv=folds) == np.array(labels)
    return Probe(right / REPEATS, np.array(groups))


def bag_of_words(texts: Sequence[str]) -> Any:
    """Return TF-IDF of words, the baseline that reads nothing but which words there are; sparse (texts, words)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(texts)
