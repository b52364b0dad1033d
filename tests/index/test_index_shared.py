"""One index in several processes: DataLoader workers that read, and writers at the same time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

from anabranch.index import BSkipListModule

pytestmark = pytest.mark.cpu


class Rows(Dataset[torch.Tensor]):
    """Looks ids up in an index, and leaves a mark there that its reader can see."""

    def __init__(self, ids: BSkipListModule) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> torch.Tensor:
        key = torch.tensor([i])
        values, found = self.ids.find(key)
        self.ids.insert(-1 - key, values)
        return torch.where(found, values, -1)


def index_of_squares(n: int = 40, capacity: int = 100) -> BSkipListModule:
    ids = BSkipListModule(capacity)
    ids.insert(torch.arange(n), torch.arange(n) ** 2)
    return ids


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_use_the_same_memory(start: str) -> None:
    ids = index_of_squares().share_memory()
    workers = 2 if start == "fork" else 1  # a spawned one imports everything again
    loader = DataLoader(Rows(ids), batch_size=8, num_workers=workers, multiprocessing_context=start)
    assert torch.cat(list(loader)).flatten().equal(torch.arange(40) ** 2)
    ids.validate()
    values, found = ids.find(-1 - torch.arange(40))
    assert found.all()
    assert values.equal(torch.arange(40) ** 2)


def test_forked_workers_have_a_copy_of_what_is_not_shared() -> None:
    ids = index_of_squares()
    loader = DataLoader(Rows(ids), batch_size=8, num_workers=1, multiprocessing_context="fork")
    assert torch.cat(list(loader)).flatten().equal(torch.arange(40) ** 2)
    assert ids.size() == 40


def test_reserve_refuses_an_index_that_others_share() -> None:
    ids = index_of_squares().share_memory()
    with pytest.raises(ValueError, match="reserve: the index is in shared memory, must be private; reserve before"):
        ids.reserve(5000)
    assert ids.find(torch.arange(40))[1].all()


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Runs work(0), work(1)... at the same time in forked processes, each with one thread."""
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(count)

    def run(worker: int) -> None:
        torch.set_num_threads(1)
        ready.wait()
        work(worker)

    processes = [context.Process(target=run, args=(worker,)) for worker in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count


def test_two_processes_write_at_once() -> None:
    n, rounds = 3000, 6
    ids = BSkipListModule(3 * n).share_memory()
    wins = torch.zeros(2, n, dtype=torch.int64).share_memory_()

    def work(worker: int) -> None:
        own, common = torch.arange(n) * 2 + worker, -1 - torch.arange(n)
        for _ in range(rounds):  # what the last one leaves stays
            assert torch.stack(ids.insert(own, own)).all()
            assert ids.find(own)[1].all()
            assert ids.erase(own).all()
            assert not ids.find(own)[1].any()
        ids.insert(own, own)
        wins[worker] = ids.insert(common, common.new_full((n,), worker))[0].long()

    in_processes(2, work)
    ids.validate()
    assert ids.size() == 3 * n
    values, found = ids.find(torch.arange(2 * n))
    assert found.all()
    assert values.equal(torch.arange(2 * n))
    # Of both processes that insert a key exactly one does, and its value stays.
    assert wins.sum(0).eq(1).all()
    assert ids.find(-1 - torch.arange(n))[0].equal(wins[1])


def test_a_reader_sees_what_stays_while_another_process_writes() -> None:
    n = 2000
    ids = BSkipListModule(2 * n).share_memory()
    permanent, passing = torch.arange(0, 2 * n, 2), torch.arange(1, 2 * n, 2)
    ids.insert(permanent, permanent)
    done = torch.zeros(1, dtype=torch.int64).share_memory_()

    def work(worker: int) -> None:
        if worker == 0:
            for _ in range(40):
                ids.insert(passing, passing)
                ids.erase(passing)
            done.fill_(1)
            return
        reads = 0
        while reads < 3 or not done.item():
            values, found = ids.find(permanent)
            assert found.all()
            assert values.equal(permanent)
            counts = ids.range_count(permanent[:-50:50], permanent[50::50])
            assert ((counts >= 51) & (counts <= 101)).all()
            reads += 1

    in_processes(2, work)
    ids.validate()
    assert ids.size() == n
