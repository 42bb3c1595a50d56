"""Answers of small models end where they only repeat themselves."""

import pytest

from handlens.engine.loops import LONGEST_PERIOD, until_loop


@pytest.mark.parametrize("period", [1, 2, 7, LONGEST_PERIOD])
def test_a_run_that_stands_there_again_and_again_ends_the_answer_and_is_said(period, caplog):
    start, run = [900, 901, 902], list(range(period))
    found = list(until_loop(iter(start + run * 400)))
    assert found[:3] == start and period * 4 <= len(found) - 3 <= max(72 + period, period * 4)
    assert "only repeated itself" in caplog.text


@pytest.mark.parametrize(
    "ids",
    [
        [1] * 60 + [2],  # a row of dots
        [1, 2] * 30 + [3],  # the frame of a wide table
        [*range(50)] * 8,  # longer than a phrase
        [token for row in range(40) for token in (1, 2, row, 3)],  # rows that differ in one token
    ],
)
def test_what_only_looks_alike_goes_on(ids):
    assert list(until_loop(iter(ids))) == ids


def test_nothing_is_asked_for_behind_the_loop():
    asked = iter([5] * 1000)
    found = list(until_loop(asked))
    assert len(found) + len(list(asked)) == 1000
