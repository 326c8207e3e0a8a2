"""What share of the machine's matrix products a pretraining reaches, and where the rest of its time goes."""

import time

import torch
from transformers import TrainerCallback

from pipeline import ROOT
from tests.conftest import make_quietly

SIZES = {"0.9M": (128, 4, 4), "5M": (256, 6, 8), "30M": (512, 9, 8)}  # hidden size, layers, heads
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear"),
    "attention": ("aten::_scaled_dot_product",),
    "loss": ("aten::_log_softmax", "aten::nll_loss"),
    "optimizer": ("aten::_fused_adamw_", "aten::_foreach", "aten::linalg_vector_norm", "Optimizer"),
}
WARM, STEPS, WATCHED = 2, 8, 3
LENGTH = 256  # of the rows of profile tiny


def products(size=1536, repeats=4):
    """Return the operations a second of the processor of a product of square matrices."""
    one, other = torch.randn(2, size, size)
    one @ other
    began = time.process_time()
    for _ in range(repeats):
        one @ other
    return repeats * 2 * size**3 / (time.process_time() - began)


def operations(model, tokens, length):
    """Return the operations of matrix products in a step: of weights 6 a token, of attention 12 a layer, width and position."""
    config = model.config
    weights = sum(one.numel() for one in model.parameters() if one.dim() == 2)  # the embeddings are tied: they are the head's
    return tokens * (6 * weights + 12 * config.num_hidden_layers * config.hidden_size * length)


def reached(size, folder):
    """Return the peak, what pretraining reaches of it, and the share of its time that each kind of operation takes."""
    from pipeline.training.trainer import StageTrainer

    hidden, layers, heads = SIZES[size]
    found = {}

    def instead(trainer, **_):
        spent, peaks, watch = [], [], torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])

        class Look(TrainerCallback):
            def on_step_begin(self, args, state, control, **_):
                peaks.append(products())
                if state.global_step == WARM + STEPS:
                    watch.start()
                self.began = time.process_time()

            def on_step_end(self, args, state, control, **_):
                spent.append(time.process_time() - self.began)
                if state.global_step == WARM + STEPS + WATCHED:
                    watch.stop()

        trainer.add_callback(Look())
        super(StageTrainer, trainer).train()
        rows = trainer.train_dataset
        tokens = sum(len(rows[at]["input_ids"]) for at in range(64)) / 64 * trainer.args.train_batch_size
        seconds = sorted(spent[WARM : WARM + STEPS])[STEPS // 2]
        peak = sorted(peaks)[len(peaks) // 2]
        found.update(
            parameters=sum(one.numel() for one in trainer.model.parameters()),
            peak=peak,
            share=operations(trainer.model, tokens, LENGTH) / seconds / peak,
            kinds=shares(watch),
        )

    StageTrainer.train = instead
    flags = [
        "--config",
        ROOT / "stages" / "profiles" / "tiny" / "pretrain.yaml",
        "--output",
        folder / size,
        "--hidden_size",
        hidden,
    ]
    flags += ["--num_hidden_layers", layers, "--num_attention_heads", heads, "--save_strategy", "'no'"]
    flags += ["--architecture", "llama", "--optim", "adamw_torch_fused"]
    try:
        make_quietly("pretrain", *flags, "--max_steps", WARM + STEPS + WATCHED + 1)
    finally:
        del StageTrainer.train
    return found


def shares(watch):
    """Return kind → share of the time of all operations, each counted without those that it calls."""
    sums = dict.fromkeys([*KINDS, "products of elements, copies and the rest"], 0.0)
    for event in watch.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), list(sums)[-1])
        sums[kind] += event.self_cpu_time_total
    return {kind: value / sum(sums.values()) for kind, value in sums.items()}
