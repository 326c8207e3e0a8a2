"""Contrastive learning of pictures (SimCLR, Chen et al. 2020, eq. 1).

Each picture is seen in two views: a random part, mirrored or not, in other colours. Of all 2(N-1)+1 other views of a batch of N
pictures, the other view of the same one should be the nearest: the loss is -log softmax of cosines over τ (NT-Xent). They are
of z, the library's pooler on the first token (one layer with tanh, where the paper has two with ReLU); what is used afterwards
is h, the states below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.stage import Against
from pipeline.data.negatives import gathered
from pipeline.evaluation.metrics import Metric
from pipeline.models import vision
from pipeline.objectives import Example, Scores
from pipeline.objectives._views import Drawing, Viewing
from pipeline.objectives._vision import VisionObjective
from pipeline.objectives.collator import HELD_OUT_BATCH
from pipeline.system.config import option


@dataclass(frozen=True)
class SimCLR(VisionObjective):
    """Pull the two views of a picture together, push the views of all others in the batch away."""

    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "retrieval",
            f"share of views whose nearest, among all other views of {HELD_OUT_BATCH} pictures, is of the same picture",
            "share",
            "more",
        ),
        Metric(
            "view_loss",
            "mean −log p of which view is of the same picture, among all others of a batch, in nats",
            "nats",
            "less",
        ),
    )
    judged_by = (Against("retrieval", "raw pixels"), Against("retrieval", "untrained"))
    chance_level: ClassVar[Mapping[str, float]] = {"retrieval": 1 / (2 * HELD_OUT_BATCH - 1)}
    accumulates = False  # a batch's pictures are each other's negatives, so a part of it would be an easier task

    temperature: float = option(0.2, "τ, what cosines are divided by", at_least=0.001)
    area: float = option(0.2, "share of a picture that a view shows, at least", at_least=0.01, at_most=1.0)
    mirror: float = option(
        0.5, "share of views that are mirrored; 0 where left and right mean something", at_least=0.0, at_most=1.0
    )
    colour: float = option(0.5, "strength of the changes of colour; 0 leaves colours as they are", at_least=0.0, at_most=1.0)

    def build_model(self, tokenizer: Any, architecture: str, **sizes: int) -> Any:
        """Return a ViT with random weights."""
        from transformers import ViTConfig, ViTModel

        self.known(architecture)
        return ViTModel(ViTConfig(**vision.sizes(sizes, self.image_size, self.patch_size)))

    def load_model(self, parent: str) -> Any:
        """Return the ViT of a folder or hub id."""
        model = vision.encoder(parent)
        self.fits(model.config)
        return model

    def collator(self, tokenizer: Any, dataset: Any, seed: int) -> Viewing:
        """Return what batches pictures in two views."""
        return Viewing(tokenizer, seed, Drawing(self.area, self.mirror, self.colour), views=2)

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of views, each of which has to find another."""
        return {"loss": len(batch[vision.PIXELS])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return -Σ log p(the other view of a picture | a view of it), over all views of the batch but itself."""
        return {"loss": nats(_embedded(model, batch) / self.temperature**0.5).sum()}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return of each picture the mean loss of its views, and how many of them find each other."""
        found = _embedded(model, batch)
        views = nats(found / self.temperature**0.5).reshape(2, -1).mean(0).tolist()
        return {"view_loss": (views, [1.0] * len(views))} | retrieval(found)

    def rivals(self, known: Sequence[Example], size: int) -> dict[str, Callable[[Mapping[str, Any]], Scores]]:
        """Return what is found by the raw pixels alone."""
        return {"raw pixels": lambda batch: retrieval(_normalised(_centred(batch[vision.PIXELS].flatten(1))))}


def _embedded(model: Any, batch: Mapping[str, Any]) -> Any:
    """Return z of each view, scaled to length 1; (views, hidden) float32."""
    return _normalised(model(pixel_values=batch[vision.PIXELS]).pooler_output.float())


def _normalised(found: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(found, dim=-1)


def _centred(found: Any) -> Any:
    return found - found.mean(0)


def nats(found: Any) -> Any:
    """Return -log p(the other view of a picture | a view) of each; `found`: (2 · pictures, hidden), first all the first views.

    The other views are those of all processes.
    """
    import torch

    everyone, first = gathered(found)
    own = torch.arange(first, first + len(found), device=found.device).unsqueeze(1)
    likeness = (found @ everyone.T).scatter(1, own, float("-inf"))
    return torch.nn.functional.cross_entropy(likeness, first + _others(found), reduction="none")


def _others(found: Any) -> Any:
    import torch

    return torch.arange(len(found), device=found.device).roll(len(found) // 2)


def retrieval(found: Any) -> Scores:
    """Return of each picture how many of its two views are each other's nearest, of two."""
    likeness = (found @ found.T).fill_diagonal_(float("-inf"))
    right = (likeness.argmax(-1) == _others(found)).float().reshape(2, -1).sum(0).tolist()
    return {"retrieval": (right, [2.0] * len(right))}


OBJECTIVE = SimCLR
