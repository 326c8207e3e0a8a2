"""The order of training rows is the library's, without a list of all of them."""

import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import SeedableRandomSampler
from trl.trainer.utils import RepeatSampler

from pipeline.training import order, policy
from pipeline.training.order import permuted


def loader(rows):
    torch.manual_seed(3)
    data = torch.utils.data.DataLoader(range(rows), batch_size=8, shuffle=True)
    as_the_trainer = DataLoaderConfiguration(use_seedable_sampler=True)
    return Accelerator(cpu=True, dataloader_config=as_the_trainer).prepare(data)


@pytest.mark.parametrize("rows", [1, 9, 256])
def test_it_is_the_order_of_accelerate_in_every_epoch(monkeypatch, rows):
    monkeypatch.setattr(order, "_AT_ONCE", 100)
    theirs, ours = loader(rows), permuted(loader(rows))
    assert type(theirs.get_sampler()) is SeedableRandomSampler, "accelerate gives another sampler, whose order is another"
    assert type(ours.get_sampler()) is order.Permuted
    epochs = [[[batch.tolist() for batch in one] for _ in range(3)] for one in (theirs, ours)]
    assert epochs[0] == epochs[1]
    assert rows == 1 or epochs[0][0] != epochs[0][1]
    theirs.set_epoch(7)
    ours.set_epoch(7)
    assert [batch.tolist() for batch in theirs] == [batch.tolist() for batch in ours]


def test_no_row_has_a_python_object_of_its_own():
    samplers = (SeedableRandomSampler(range(300_000), data_seed=1), order.Permuted(300_000, 1))
    peaks = []
    for sampler in samplers:
        tracemalloc.start()
        next(iter(sampler))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 30 * 300_000
    assert peaks[1] < 5 * 300_000


def prompt_orders(rows, shuffle=True):
    """Return trl's sampler of prompts and ours, of groups of 4 in batches of 3 that are read twice."""
    arguments = SimpleNamespace(
        seed=5, num_generations=4, generation_batch_size=12, num_iterations=2, steps_per_generation=1, shuffle_dataset=shuffle
    )
    theirs = RepeatSampler(range(rows), mini_repeat_count=4, batch_size=3, repeat_count=2, shuffle=shuffle, seed=5)
    return theirs, policy.PromptOrder(arguments, range(rows))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rows", [2, 3, 100])
def test_the_order_of_prompts_is_trl_s(rows, shuffle):
    theirs, ours = prompt_orders(rows, shuffle)
    found = list(ours)
    assert found == list(theirs)
    assert len(found) == len(ours) == rows // 3 * 24
    if shuffle and rows == 100:
        ours.set_epoch(1)
        assert list(ours) != found
        ours.set_epoch(0)
        assert list(ours) == found


def test_no_prompt_has_a_python_object_of_its_own():
    peaks = []
    for sampler in prompt_orders(300_000):
        tracemalloc.start()
        next(iter(sampler))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 30 * 300_000
    assert peaks[1] < 100_000  # beside the tensor of the order, 8 bytes a prompt, which tracemalloc does not see
