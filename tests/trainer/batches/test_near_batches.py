"""Batches of images that look alike in twos."""

import pytest
import torch

from fastgoal.trainer.batches.near_batches import NearPairSampler, nearest_rows


@pytest.fixture
def twins():
    """40 rows; rows 2k and 2k + 1 lie close together, all others far apart."""
    centres = torch.eye(20).repeat_interleave(2, dim=0)
    return centres + 0.05 * torch.randn(40, 20, generator=torch.Generator().manual_seed(0))


def test_nearest_rows_against_sorting_them_all(twins):
    found = nearest_rows(3 * twins, count=7, chunk=9)
    unit = twins / twins.norm(dim=1, keepdim=True)
    for row in range(40):
        others = sorted((other for other in range(40) if other != row), key=lambda other: -unit[row] @ unit[other])
        assert found[row].tolist() == others[:7]


def test_the_same_picture_is_no_neighbour():
    embeds = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.5]])
    assert nearest_rows(embeds, 5).tolist() == [[2, -1], [2, -1], [0, 1]]


def test_few_rows():
    assert nearest_rows(torch.ones(0, 4)).shape[0] == 0
    assert nearest_rows(torch.ones(1, 4)).shape == (1, 0)
    assert list(NearPairSampler(nearest_rows(torch.ones(1, 4)), 4)) == [0]
    assert list(NearPairSampler(nearest_rows(torch.ones(0, 4)), 4)) == []


def test_twins_share_a_batch_and_every_row_comes_once(twins):
    sampler = NearPairSampler(nearest_rows(twins, 1), 8, seed=3)
    together = 0
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(40))
        batches = [set(order[i : i + 8]) for i in range(0, 40, 8)]
        together += sum({2 * k, 2 * k + 1} <= batch for k in range(20) for batch in batches)
    # The first of the two passes the other over with a chance of 0.3; at random they would meet in 18 of 100.
    assert together >= 0.6 * 5 * 20


def test_epochs_differ_and_come_again(twins):
    near = nearest_rows(twins)
    sampler = NearPairSampler(near, 8, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(sampler) == list(NearPairSampler(near, 8, seed=2))


def test_pairs_of_like_length_make_a_batch(twins):
    lengths = torch.randint(10, 200, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    near = nearest_rows(twins)

    def padding(sampler):
        order = list(sampler)
        batches = [[lengths[row] for row in order[i : i + 8]] for i in range(0, 40, 8)]
        return sum(8 * max(batch) - sum(batch) for batch in batches)

    assert padding(NearPairSampler(near, 8, lengths=lengths)) < 0.8 * padding(NearPairSampler(near, 8))


def test_an_odd_batch_and_a_short_last_one(twins):
    order = list(NearPairSampler(nearest_rows(twins), 7))
    assert sorted(order) == list(range(40))
