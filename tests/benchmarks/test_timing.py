"""Medians and ratios of rounds with known times."""

import argparse
import time

import numpy as np
import pytest
import torch

from benchmarks.timing import Rounds, add_device_option, timed


def test_rounds():
    rounds = Rounds()
    for ours, theirs in ((1.0, 2.0), (10.0, 40.0), (2.0, 20.0)):
        rounds.add("ours", np.array([ours, 1.0]))
        rounds.add("theirs", np.array([theirs, 3.0]))
    assert rounds.median("ours").tolist() == [2.0, 1.0]
    # Each round is compared with itself: the median of 2, 4 and 10, not 20 / 2.
    assert np.median(rounds.ratios("theirs", "ours"), axis=0).tolist() == [4.0, 3.0]


def test_sleeping_takes_no_processor():
    clock, processor = timed(lambda: time.sleep(0.05))
    assert clock >= 0.05
    assert processor < clock
    assert timed(lambda: None)[0] == pytest.approx(0, abs=0.01)


def test_a_missing_gpu_is_an_error_of_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = argparse.ArgumentParser()
    add_device_option(parser)
    assert parser.parse_args([]).device == "cpu"
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", "cuda"])
    assert "--device: must be cpu, because PyTorch sees no GPU, got cuda" in capsys.readouterr().err
