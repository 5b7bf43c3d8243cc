"""Blocks made by several threads come in order, a bounded number at once, and leave nothing behind."""

import threading

import pytest
import torch

from dpcgan_fast.synthesis.side_by_side import side_by_side


def running():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dpcgan-sample")]


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first():
    ready = [threading.Event() for _ in range(20)]

    def odd_ones_first(item):
        if item % 2 == 0:
            assert ready[item + 1].wait(10)
        ready[item].set()
        return item

    assert list(side_by_side(odd_ones_first, range(20), 2)) == list(range(20))
    assert running() == []


def test_as_many_are_made_at_once_as_there_are_threads():
    together = threading.Barrier(2)  # passes two, and breaks if one waits alone
    at_once, most = 0, 0
    lock = threading.Lock()

    def make(_):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        together.wait(10)
        with lock:
            at_once -= 1

    assert len(list(side_by_side(make, range(12), 2))) == 12
    assert most == 2


def test_no_more_items_are_asked_for_than_may_wait():
    asked = []

    def items():
        for item in range(12):
            asked.append(item)
            yield item

    for taken, _ in enumerate(side_by_side(lambda item: item, items(), 2), start=1):
        assert len(asked) <= taken + 3


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
