"""Blocks made by several threads come in order, a bounded number at once, and leave nothing behind."""

import threading
import time

import pytest
import torch

from dpcgan_fast.synthesis.side_by_side import side_by_side


def running():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpcgan-sample")]


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first():
    def slow_when_even(item):
        time.sleep(0.01 * (item % 2 == 0))
        return item

    assert list(side_by_side(slow_when_even, range(20), 3)) == list(range(20))
    assert running() == []


def test_so_many_are_made_at_once_and_few_wait():
    made, at_once, most = [], 0, 0
    lock = threading.Lock()

    def make(item):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1
            made.append(item)

    for taken, _ in enumerate(side_by_side(make, range(12), 2), 1):
        time.sleep(0.02)
        assert len(made) <= taken + 3
    assert most == 2


def test_each_thread_has_torch_to_itself_and_others_keep_their_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(side_by_side(lambda _: torch.get_num_threads(), range(3), 2)) == [1, 1, 1]
        seen = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert [torch.get_num_threads(), *seen] == [2, 2]
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_where_its_result_would_and_ends_the_threads():
    def make(item):
        if item == 3:
            raise ValueError("three")
        return item

    results = side_by_side(make, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert running() == []


def test_closing_early_ends_the_threads():
    results = side_by_side(lambda item: item, iter(int, 1), 2)
    assert next(results) == 0
    results.close()
    assert running() == []
