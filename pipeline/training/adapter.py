"""What a stage trains: LoRA by peft's own names (Hu et al. 2021), every parameter, or some rows of the head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.system.config import option
from pipeline.system.errors import UserError

NO_LAYER = "dummy-target-modules"  # peft's name for no layer: the adapter trains only tokens and the head
_LORA = ("method", "lora")


@dataclass(frozen=True)
class AdapterOptions:
    """What of a model is trained; the names are those of peft's LoraConfig."""

    method: Literal["lora", "full", "rows"] = option(
        "lora", "lora, full to train every parameter, or rows to train nothing but the output rows of some tokens"
    )
    rows: list[str] = option(  # noqa: RUF009
        [],
        "texts whose tokens are trained beside the adapter, or by method rows alone, for which each is one token",
        omitted=True,
    )
    r: int = option(16, "rank of the adapter", at_least=1, needs=_LORA)
    lora_alpha: int = option(32, "scale of the adapter times its rank", at_least=1, needs=_LORA)
    lora_dropout: float = option(
        0.0, "share of the adapter's inputs that are dropped in training", at_least=0.0, at_most=0.9, needs=_LORA
    )
    target_modules: str | list[str] = option("all-linear", "layers that get an adapter, by the end of their names", needs=_LORA)  # noqa: RUF009
    use_rslora: bool = option(False, "divide by the root of the rank (Kalajdzievski 2023)", needs=_LORA)
    use_dora: bool = option(False, "train magnitudes and directions apart (Liu et al. 2024)", needs=_LORA)

    def adapter(self, model: Any = None, tokens: Sequence[int] = (), task: str = "CAUSAL_LM") -> Any:
        """Return peft's configuration, or None where every parameter is trained.

        `task`: peft's name for what the model does; of SEQ_CLS, as a reward model is, the head is trained beside the adapter.
        With method rows nothing is trained but the rows of `tokens` in the head, which `begin_rows` gave weights of its own.
        `tokens`: ids of `model` whose embeddings are trained too, since LoRA alone never teaches a token that pretraining did
        not see, of a chat template or of `rows`. Where the head is not tied to the embeddings, its rows are too. UserError
        where `rows` has texts and the stage hands on no token.
        """
        from peft import LoraConfig

        if self.rows and not tokens:
            raise UserError(f"rows: {self.rows}: this stage trains no tokens of their own; leave it out")
        if self.method == "full":
            return None
        if self.method == "rows":
            if not tokens:
                raise UserError("method: rows: this stage trains no output rows; choose lora or full, or another stage")
            return LoraConfig(task_type=task, target_modules=NO_LAYER, trainable_token_indices={_head(model): sorted(tokens)})
        return LoraConfig(
            task_type=task, r=self.r, lora_alpha=self.lora_alpha, lora_dropout=self.lora_dropout,
            target_modules=self.target_modules, use_rslora=self.use_rslora, use_dora=self.use_dora,
            trainable_token_indices=_token_rows(model, tokens) if tokens else None,
        )  # fmt: skip


def _token_rows(model: Any, tokens: Sequence[int]) -> dict[str, list[int]]:
    """Return layer → ids of the rows that are trained, of the embeddings and of a head that is not tied to them."""
    layers = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if any(module is layer for layer in layers)]
    return {name: sorted(tokens) for name in names}


def _head(model: Any) -> str:
    """Return the name of the head, by the end of its path."""
    head = model.get_output_embeddings()
    return str(next(name for name, module in model.named_modules() if module is head).rpartition(".")[2])


def give_head_a_bias(model: Any) -> None:
    """Let trl's fused head read `bias` from a head whose tokens are trained: peft's wrapper passes on only the weight."""
    head = model.get_output_embeddings()
    if hasattr(head, "token_adapter"):
        head.register_parameter("bias", None)


@contextlib.contextmanager
def without_card(model: Any) -> Iterator[None]:
    """Let peft save a model without a card beside it, whose template it would compile anew at each checkpoint."""
    vars(model)["create_or_update_model_card"] = lambda folder: None
    try:
        yield
    finally:
        del vars(model)["create_or_update_model_card"]
