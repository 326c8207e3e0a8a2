"""A last layer that reads from rows of the head how sure a causal model is, and writes that along one direction.

Block expansion (LLaMA Pro, Wu et al. 2024, section 3.2) puts a layer behind the last one that changes nothing at first. An
MLP is a memory of keys and values (Geva et al. 2021, eq. 2): here the key of a unit is the output row of a token, so that
its gate is silu(logit - offset), and all units have one value v. The layer adds v · Σ silu(logit - offset) to the residual
stream: much where the model is sure of one of the tokens, next to nothing where it is sure of none. Neurons that read and
set confidence are found in trained models, too (Stolfo et al. 2024).

Nothing of it is trained, and what comes out is an ordinary Llama with one layer more, whose MLPs have biases.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from pipeline.system.errors import UserError

_RIDGE = 1e-4  # of the head's mean square: keeps a direction short where the head leaves it free


def append(model: Any) -> Any:
    """Return a model with one layer more, which changes nothing as yet; UserError where its MLPs can't have biases."""
    if model.config.model_type != "llama" or model.config.hidden_act != "silu":
        raise UserError(
            f"a model of type {model.config.model_type}: a layer that reads confidence needs gates of silu with biases, as a "
            "Llama's configuration has them; begin with architecture llama"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers += 1
    config.mlp_bias = True
    deeper = type(model)(config).to(model.device)
    new = deeper.model.layers[-1]
    with torch.no_grad():
        added = deeper.load_state_dict(model.state_dict(), strict=False).missing_keys
        for name in added:
            deeper.get_parameter(name).zero_()
        new.input_layernorm.weight.fill_(1.0)
        new.post_attention_layernorm.weight.copy_(deeper.model.norm.weight)  # the gates see what the head sees
    return deeper.train(model.training)


@torch.no_grad()
def write(model: Any, tokens: torch.Tensor, offset: float, value: torch.Tensor) -> None:
    """Let the last layer read tokens, at most as many as its MLP has units, and write `value`, (hidden size)."""
    mlp, count = model.model.layers[-1].mlp, len(tokens)
    mlp.gate_proj.weight[:count] = model.get_output_embeddings().weight[tokens]
    mlp.gate_proj.bias[:count] = -offset
    mlp.up_proj.bias[:count] = 1.0
    mlp.down_proj.weight[:, :count] = value[:, None]


def logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """Return logits, (..., vocabulary), from what enters the last layer, (..., hidden size), which attends to nothing."""
    layer = model.model.layers[-1]
    found: torch.Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
    found = model.get_output_embeddings()(model.model.norm(found))
    return found


@torch.no_grad()
def lowering(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the direction of the residual stream, (hidden size), that lowers tokens by 1 before the norm divides, and others least.

    With A the other rows of the head times the norm's weight and B those of the tokens: min |A u|² + λ |u|² for B u = -1,
    so u = -M⁻¹ Bᵀ (B M⁻¹ Bᵀ)⁻¹ 1 with M = Aᵀ A + λ I.
    """
    rows = (model.get_output_embeddings().weight * model.model.norm.weight).double()
    lowered = rows[tokens]
    others = rows.index_fill(0, tokens, 0.0)
    second = others.T @ others
    second += _RIDGE * second.diagonal().mean() * torch.eye(len(second), device=rows.device)
    towards = torch.linalg.solve(second, lowered.T)
    ones = torch.ones(len(tokens), device=rows.device, dtype=rows.dtype)
    found: torch.Tensor = -towards @ torch.linalg.solve(lowered @ towards, ones)
    return found.to(model.dtype)
