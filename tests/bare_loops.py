"""A stage's own training beside a plain loop of torch and transformers over the same batches."""

import copy
import time

import torch

from tests.conftest import make_quietly
from tests.throughput import Turn, Turns

WARM = 5  # steps that are not counted


def plain(model, batch):
    """Return the loss that a model of transformers computes of its labels."""
    return model(**batch, use_cache=False).loss


def masked(model, batch):
    """Return the loss of hidden tokens."""
    return model(**batch).loss


def paired(model, batch):
    """Return the loss of hidden tokens and of whether two segments follow each other."""
    return model(**{**batch, "next_sentence_label": batch["pair"], "pair": None}).loss


def labelled(model, batch):
    """Return the loss of a text's label."""
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["label"]).loss


def preferred(model, batch, beta=1.0, weights=(0.1, 1.0)):
    """Return DPO's loss and the likelihood of the chosen side, the reference being the model without its adapter."""

    def logps():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[:, :-1]
        chosen = torch.log_softmax(logits.float(), -1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        return chosen * batch["completion_mask"][:, 1:]

    with torch.no_grad(), model.disable_adapter():
        reference = logps().sum(-1)
    found = logps()
    margins = (found.sum(-1) - reference).chunk(2)
    likelihood = -found.chunk(2)[0].sum() / batch["completion_mask"].chunk(2)[0].sum()
    return -weights[0] * torch.nn.functional.logsigmoid(beta * (margins[0] - margins[1])).mean() + weights[1] * likelihood


def fresh(trainer):
    """Return a model like that of a trainer of trl, which put a forward of its own on it: the parent's with a new adapter."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(trainer.model.peft_config["default"])
    model = AutoModelForCausalLM.from_pretrained(trainer.parent, dtype=torch.float32)
    model.resize_token_embeddings(trainer.model.get_input_embeddings().weight.shape[0])
    return get_peft_model(model, config)


def copied(trainer):
    """Return the trainer's own model once more."""
    return copy.deepcopy(trainer.model)


def share(kind, flags, loss, model=copied, steps=45):
    """Return the tokens a second of a stage's training as a share of those of a bare loop; both take turns at each step."""
    from pipeline.training.trainer import StageTrainer

    own, found = StageTrainer.__dict__.get("train"), {}
    parent = dict(zip(flags[::2], flags[1::2], strict=True)).get("--parent")

    def instead(trainer, **_):
        trainer.parent = parent
        other, batches, step = model(trainer), [], trainer.training_step

        def seen(network, inputs, *more):
            batches.append({name: one.clone() for name, one in inputs.items() if isinstance(one, torch.Tensor)})
            return step(network, inputs, *more)

        trainer.training_step = seen

        def ours(turn):
            trainer.add_callback(Turn(turn))
            super(StageTrainer, trainer).train()

        def bare(turn):
            trained = [one for one in other.train().parameters() if one.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=trainer.args.learning_rate, fused=True)
            for number in range(steps):
                loss(other, batches[number]).backward()
                batches[number] = None
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                turn()

        taken = Turns({"ours": ours, "bare": bare}, time.process_time).seconds
        found.update({name: sum(seconds[WARM:steps]) for name, seconds in taken.items()})

    StageTrainer.train = instead
    try:
        make_quietly(kind, *flags, "--max_steps", steps, "--save_strategy", "'no'")
    finally:
        if own is None:
            del StageTrainer.train
        else:
            StageTrainer.train = own
    return found["bare"] / found["ours"]
