"""DPO's losses: where they stand before anything is learned, by name, exact under accumulation, and their collapse."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.system.errors import UserError
from pipeline.training import loop
from pipeline.training.trainer import take_rows
from stages.dpo import BY_ROW
from tests.conftest import SMALL, last

BETA, EPSILON = 0.3, 0.1
HALF = math.log(0.5)
AT_ZERO = {  # by hand, at a margin of 0
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": 1 / (2 * BETA) ** 2,
    "exo_pair": 0.5 * (HALF - math.log(1 - EPSILON)) + 0.5 * (HALF - math.log(EPSILON)),
    "nca_pair": 2 * math.log(2),
    "robust": math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 2 * (0.5 / BETA) ** 2,
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.5 * math.log(2) + 0.5,
    "sigmoid_norm": math.log(2),
}


@pytest.fixture
def dpo(run, chain, data, tmp_path):
    """Run the stage on the small chain; later flags replace earlier ones."""

    def call(*flags):
        given = ["--parent", chain / "sft", "--output", tmp_path / "dpo", "--data", data / "pairs.jsonl", *SMALL["dpo"], *flags]
        return run("dpo", *last(given))

    return call


REFERENCES = [[], ["--ld_alpha", "0.5"], ["--precompute_ref_log_probs", "true"],
              ["--precompute_ref_log_probs", "true", "--ld_alpha", "0.5"]]  # fmt: skip


def stock_trainer(kind, run, trainer, parent):
    """A trainer of trl as it comes, on the rows, settings and parent of ours; it asks its reference in each step."""

    class Stock(kind):
        def _prepare_dataset(self, dataset, *_):
            return dataset

    arguments = copy.copy(trainer.args)
    arguments.precompute_ref_log_probs = False
    model, copied = (AutoModelForCausalLM.from_pretrained(parent) for _ in range(2))
    adapter = run.options.adapter()
    return Stock(model, None if adapter else copied, arguments, train_dataset=trainer.train_dataset,
                 processing_class=trainer.processing_class, peft_config=adapter)  # fmt: skip


@pytest.fixture
def at_first_step(dpo, monkeypatch):
    """Run the stage up to its first step, and look at the trainer there; return what the stage said."""

    def call(look, *flags):
        def first_step(run, trainer, rows):
            batch = next(iter(trainer.get_train_dataloader()))
            take_rows(batch)
            trainer.model.train()
            trainer.loss_weights, trainer.label_smoothing = [1.0], EPSILON
            look(run, trainer, batch)
            raise UserError("seen enough")

        monkeypatch.setattr(loop, "fit", first_step)
        status, out, err = dpo("--beta", BETA, *flags)
        assert "seen enough" in err, err
        assert status == 2
        assert ("reference: kept in" in out) is ("--precompute_ref_log_probs" in flags)
        return out

    return call


ADAPTERS = [[], ["--use_dora", "true"], ["--use_rslora", "true"], ["--method", "full"]]


@pytest.mark.parametrize(
    ("adapter", "reference"),
    [
        pytest.param(adapter, reference, marks=[pytest.mark.slow] * (adapter != ADAPTERS[0] and reference != REFERENCES[0]))
        for adapter in ADAPTERS
        for reference in REFERENCES
    ],
)
def test_every_loss_stands_at_its_value_for_margin_0_on_any_parent(
    at_first_step, run, chain, data, tmp_path, adapter, reference
):
    assert AT_ZERO.keys() == BY_ROW
    trained = ["--parent", chain / "pretrain", "--output", tmp_path / "sft", "--data", data / "chats.jsonl", *SMALL["sft"]]
    assert run("sft", *last([*trained, "--learning_rate", "1e-2", *adapter]))[0] == 0
    found = {}

    def look(_, trainer, batch):
        for name in AT_ZERO:
            trainer.loss_types = [name]
            found[name] = float(trainer.compute_loss(trainer.model, batch))

    at_first_step(look, "--parent", tmp_path / "sft", *adapter, *reference)
    assert found == {name: pytest.approx(value, abs=5e-5) for name, value in AT_ZERO.items()}


def moved(model):
    """Move what is trained, as some steps would: the same for two models that are alike."""
    torch.manual_seed(3)
    for weights in model.parameters():
        if weights.requires_grad:
            weights.data += 0.1 * torch.randn(weights.shape)


def gradient(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return float(loss), torch.cat([weights.grad.flatten() for weights in trainer.model.parameters() if weights.requires_grad])


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        pytest.param(method, reference, marks=[pytest.mark.slow] * (method == "full" and reference != REFERENCES[0]))
        for method in ("lora", "full")
        for reference in [*REFERENCES, ["--use_weighting", "true"], ["--gradient_checkpointing", "true"]]
    ],
)
def test_every_loss_and_its_gradient_are_trls_at_a_margin(at_first_step, chain, tmp_path, method, reference):
    """Joined pairs, answers scored alone and a kept reference, against trl's trainer as it comes."""
    from trl import DPOTrainer

    def look(run, trainer, batch):
        assert trainer.joins
        stock = stock_trainer(DPOTrainer, run, trainer, chain / "sft")
        stock.loss_weights, stock.label_smoothing = [1.0], EPSILON
        given = {name: column for name, column in batch.items() if not name.startswith("ref_")}
        moved(trainer.model)
        moved(stock.model)
        for name in ["sigmoid", "ipo"] if trainer.use_weighting else [*AT_ZERO, "sft"]:
            trainer.loss_types = stock.loss_types = [name]
            (loss, ours), (expected, theirs) = gradient(trainer, batch), gradient(stock, given)
            assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5), name
            rounding = 5e-4 if name == "discopop" else 1e-4  # which divides the margin, and its rounding, by 0.05
            assert float((ours - theirs).norm()) <= rounding * float(theirs.norm()), name
            assert name not in AT_ZERO or abs(loss - AT_ZERO[name]) > 1e-3, name  # the margin is none of 0

    at_first_step(look, "--per_device_train_batch_size", "8", "--method", method, *reference)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--label_smoothing", "0.1"], "label_smoothing: sigmoid would ignore it; read by exo_pair, robust, aot, aot_unpaired"),
        (["--label_smoothing", "0.1", "--loss_type", "[ipo, sft]"], "label_smoothing: ipo and sft would ignore it"),
        (["--label_smoothing", "0.7", "--loss_type", "[robust]"], "label_smoothing: 0.7: a share of wrong labels"),
        (["--loss_type", "[exo_pair]"], "label_smoothing: exo_pair needs one above 0"),
        (["--loss_type", "[sigmoid, hinges]"], "loss_type: no such loss: hinges; did you mean hinge?"),
        (["--sync_ref_model", "true", "--precompute_ref_log_probs", "true"], "precompute_ref_log_probs: sync_ref_model moves"),
        (["--use_weighting", "true", "--loss_type", "[sigmoid, sft]"], "use_weighting: trl can't weigh sft"),
        (["--lora_dropout", "0.1"], "lora_dropout: has no effect here"),
        (["--init_lora_weights", "pissa"], "init_lora_weights"),  # would change what the reference is
        (["--init_lora_weights", "olora"], "init_lora_weights"),
    ],
)
def test_what_a_loss_does_not_read_is_refused_by_name(dpo, flags, said):
    status, _, err = dpo(*flags)
    assert status == 2, err
    assert said in err
    assert "Traceback" not in err


def test_label_smoothing_where_one_loss_of_a_mixture_reads_it(dpo):
    status, _, err = dpo(
        "--loss_type", "[robust, sft]", "--loss_weights", "[1, 0.5]", "--label_smoothing", "0.1", "--max_steps", "1"
    )
    assert status == 0, err


@pytest.mark.parametrize("split", [(1, 8), (4, 2)])
def test_a_mixture_with_the_likelihood_is_exact_under_accumulation(dpo, chain, tmp_path, split):
    """Answers are of different lengths, so the mean over batches of the means over tokens is not the mean over tokens."""
    rows = [
        {"prompt": f"Who ran {n}?", "chosen": "The cat" + " and the dog" * (n % 7) + ".", "rejected": "Me."} for n in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = load_file(chain / "sft" / "model.safetensors")
    flags = [
        "--data",
        tmp_path / "pairs.jsonl",
        "--loss_type",
        "[sigmoid, sft, ipo]",
        "--loss_weights",
        "[0.1, 1, 0.01]",
        "--optim",
        "sgd",
        "--learning_rate",
        "0.1",
    ]
    weights = []
    for size, steps in ((8, 1), split):
        out = tmp_path / f"{size}-{steps}"
        more = ["--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps, "--max_grad_norm", "0"]
        status, _, err = dpo(*flags, *more, "--max_steps", "1", "--output", out)
        assert status == 0, err
        weights.append(load_file(out / "model.safetensors"))
    moved = max((weights[0][name] - before[name]).abs().max().item() for name in before)
    assert moved > 1e-5
    assert max((weights[0][name] - weights[1][name]).abs().max().item() for name in before) < 2e-3 * moved


def test_a_chosen_side_that_collapses_is_warned_of_once(dpo, tmp_path):
    status, out, err = dpo("--learning_rate", "0.3", "--logging_steps", "1", "--max_steps", "24", "--beta", "0.01")
    assert status == 0, err
    log = (tmp_path / "dpo" / "log.jsonl").read_text()
    assert log.count('"change/chosen"') == log.count('"logps/chosen"') == 24
    assert out.count("the answers that were liked have become unlikely, by") == 1
