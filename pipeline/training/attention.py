"""Attention kernels by the library's own names, and whether packed documents stay apart under the one that trains."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.system.config import option
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from pipeline.chain.run import Run

_PROBE = 16  # tokens of a document by which it is measured whether a model sees another
_LEAST = 0.1  # of the influence of text in the same document; where documents are apart it is 0


@dataclass(frozen=True)
class AttentionOptions:
    """Options of the stages that pack rows."""

    attn_implementation: str = option(
        "",
        "attention kernel by the library's name, such as flash_attention_2, flex_attention or that of a hub kernel; empty: the library's choice",
        omitted=True,
    )


def choose(run: Run, model: Any, collator: Any, longest: int) -> None:
    """Put the chosen kernel on a model, and let packed rows be batched as it and torch.compile want them.

    Flash kernels tell the documents of one long row apart, and not those of several rows. Compiled code wants every batch to
    have the same shape. Raises UserError where the library can't have the kernel.
    """
    from pipeline.data.batches import CausalCollator

    if name := run.options.attn_implementation:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError, OSError, RuntimeError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"attn_implementation: {name}: the library can't have it here: {line[:300]}") from None
    if not isinstance(collator, CausalCollator):
        return
    collator.flat = "flash" in name
    collator.length = longest if run.arguments.get("torch_compile") else 0


def computing(trainer: Any, model: Any) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a model can be asked outside of a step: in the training's precision for a kernel that has no other."""
    return contextlib.nullcontext() if _plain(model) else trainer.compute_loss_context_manager()


def plain(model: Any) -> None:
    """Put torch's own kernel back, with which a model can be asked in fp32, and on a CPU."""
    if not _plain(model):
        model.set_attn_implementation("sdpa")


def _plain(model: Any) -> bool:
    return getattr(model.config, "_attn_implementation", None) in ("sdpa", "eager", None)


def isolates(trainer: Any, model: Any) -> None:
    """Raise UserError where packed documents see each other under the kernel, device and precision that train them."""
    columns = getattr(trainer.train_dataset, "column_names", None) or []
    chosen = getattr(model.config, "_attn_implementation", None)
    if "seq_lengths" not in columns or (trainer.args.device.type == "cpu" and _plain(model)):
        return  # on a CPU the model was asked before its rows were packed
    flat = bool(getattr(getattr(trainer.data_collator, "collator", None), "flat", False))
    with trainer.compute_loss_context_manager():
        found = influence(model, 1 if flat else 2)
    if found > _LEAST:
        raise UserError(
            f"attn_implementation: {chosen}: packed documents see each other on {trainer.args.device.type}: another document of the "
            f"row counts for {found:.0%} of what it would within the same one; choose sdpa"
        )


def influence(model: Any, rows: int = 2) -> float:
    """Return by how much another first document changes the logits of the second one in a packed row.

    It is told as a share of what the change is where both are one document: 0 where a kernel keeps documents apart, whatever
    its precision, since a row of the same length is computed the same way; 1 where it sees no border. `rows`: of the batch,
    since flash kernels read positions that begin again in a batch of one row alone.
    """
    import torch

    size = int(model.config.get_text_config().vocab_size)
    was_training, device = model.training, next(model.parameters()).device
    documents = (torch.arange(1, 3 * _PROBE + 1).reshape(3, _PROBE) * 37 % size).to(device)
    batches = [torch.cat([documents[first], documents[2]]).repeat(rows, 1) for first in (0, 1)]

    def change(positions: torch.Tensor) -> float:
        one, other = (
            model(input_ids=batch, position_ids=positions.expand(rows, -1), use_cache=False).logits[:, _PROBE:].float()
            for batch in batches
        )
        return float((one - other).abs().max())

    model.eval()
    with torch.no_grad():
        whole = torch.arange(2 * _PROBE, device=device)
        packed, joined = change(whole % _PROBE), change(whole)
    model.train(was_training)
    return packed / joined if joined else float(packed > 0)


def keeps_apart(model: Any) -> bool:
    """Say whether a model keeps packed documents apart: the second one's logits are those it has alone.

    Some architectures ignore position ids that begin again (OPT does), so it is measured, not assumed.
    """
    import torch

    size = int(model.config.get_text_config().vocab_size)
    documents = torch.arange(1, 13).reshape(2, 6) * 37 % size
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        positions = torch.arange(6).repeat(2).unsqueeze(0).to(device)
        packed = model(input_ids=documents.reshape(1, 12).to(device), position_ids=positions, use_cache=False).logits[0, 6:]
        alone = model(input_ids=documents[1:].to(device), use_cache=False).logits[0]
    model.train(was_training)
    return bool((packed - alone).abs().max() <= 1e-3 * alone.abs().max().clamp(min=1.0))
