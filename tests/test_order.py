"""The order of training rows is the library's, without a list of all of them."""

import tracemalloc

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import SeedableRandomSampler

from pipeline.training import order
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
