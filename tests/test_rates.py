import re
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipeline.training import rates


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        torch.nn.init.normal_(self.up.weight, std=0.02)
        torch.nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return self.down(self.up(x))


def judged(rate, steps=100, optim="adamw_torch_fused", **lora):
    torch.manual_seed(0)
    model = get_peft_model(Layer(), LoraConfig(target_modules=["up"], **lora)) if lora else Layer()
    return rates.fault(model, SimpleNamespace(learning_rate=rate, optim=optim), rate * steps, rate)


def test_rates_that_people_use_are_fine():
    for rate in (1e-6, 3e-4, 2e-2):
        assert not judged(rate)
        assert not judged(rate, r=8, lora_alpha=16)
    assert not judged(1e-3, r=8, lora_alpha=256)
    assert not judged(0.9, optim="sgd")  # whose steps are as large as the gradient
    assert not judged(1e-9, optim="sgd")
    assert not judged(1e-9, steps=1000)


def test_rows_of_a_table_begin_small_and_may_move_far():
    table = torch.nn.Embedding(9, 16)  # such as word vectors
    torch.nn.init.uniform_(table.weight, -0.5 / 16, 0.5 / 16)
    assert not rates.fault(table, SimpleNamespace(learning_rate=0.1, optim="adamw_torch_fused"), 10, 0.1)


def test_a_rate_that_moves_nothing_is_refused():
    assert re.search(
        r"learning_rate: 1e-09: all steps of adamw_torch_fused together would have moved no weight by more than about 1e-08",
        judged(1e-9, steps=11),
    )


def test_a_rate_that_wrecks_is_refused():
    assert re.search(r"one step of adamw_torch_fused moves up.weight by about 4\d times the size of its weights", judged(0.9))
    assert re.search(
        r"moves base_model.model.up through its LoRA by about 18 times.* lower learning_rate or lora_alpha",
        judged(0.9, r=8, lora_alpha=16),
    )
    assert re.search(
        r"moves base_model.model.up through its LoRA by about .* lower learning_rate or lora_alpha",
        judged(1e-3, r=8, lora_alpha=1_000_000),
    )


def test_a_block_that_begins_near_zero_may_move_as_the_others_do():
    model = torch.nn.ModuleList([Layer() for _ in range(3)])
    with torch.no_grad():
        model[1].up.weight *= 1e-4
    assert not rates.fault(model, SimpleNamespace(learning_rate=1e-3, optim="adamw_torch_fused"), 0.1, 1e-3)
    assert rates.fault(model, SimpleNamespace(learning_rate=0.9, optim="adamw_torch_fused"), 90, 0.9)


@pytest.mark.parametrize(
    ("schedule", "arguments", "warm", "total", "most"),
    [
        ("linear", None, 0, 0.05, 1e-3),
        ("constant", None, 0, 0.1, 1e-3),
        ("constant_with_warmup", None, 1000, 0.005, 1e-4),
        ("cosine_with_min_lr", {"min_lr": 5.0}, 0, 250, 5.0),
        ("warmup_stable_decay", {"num_decay_steps": 10**6}, 0, 0.0, 0.0),
    ],
)
def test_the_rates_are_those_of_the_schedule(schedule, arguments, warm, total, most):
    given = SimpleNamespace(
        learning_rate=1e-3, lr_scheduler_type=schedule, lr_scheduler_kwargs=arguments, get_warmup_steps=lambda _: warm
    )
    assert rates.scheduled(given, 100) == (pytest.approx(total, rel=0.05, abs=1e-6), pytest.approx(most, rel=0.05, abs=1e-6))


def test_a_rate_that_never_rises_is_refused():
    given = SimpleNamespace(learning_rate=1e-3, optim="adamw_torch_fused")
    assert re.search(r"lets the rate rise to 1e-06 of 0.001 within the run", rates.fault(Layer(), given, 1e-4, 1e-6))
