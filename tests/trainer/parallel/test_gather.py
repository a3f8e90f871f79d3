"""Two processes against one: the same loss and the same gradients, also with an uneven last batch, in one exchange."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastgoal.modeling_fastgoal.losses_fastgoal import LossWeights, contrasted, fast_goal_loss
from fastgoal.trainer.parallel import gather
from fastgoal.trainer.parallel.gather import gather_batch, gather_with_gradient

NAMES = ("image_embeds", "text_embeds", "local_image_embeds", "local_text_embeds", "region_embeds", "sentence_embeds")
NAMES += ("short_text_embeds",)
WEIGHTS = LossWeights(token_weight=0.3, short_weight=0.2)
ROWS, WIDTH = 7, 5
# The rows of each process, and how they are gathered. Rows from the seventh on repeat the first ones.
CASES: dict[str, tuple[list[range], dict[str, Any]]] = {
    "uneven": ([range(4), range(4, 7)], {}),
    "one row": ([range(6), range(6, 7)], {}),
    "more in the second": ([range(1), range(1, 7)], {}),
    "repeated": ([range(4), range(4, 8)], {"even": True, "last": ROWS}),
    "all of one repeated": ([range(7), range(7, 14)], {"even": True, "last": ROWS}),
}


class Towers(torch.nn.Module):
    """One linear map for each kind of embedding, and a logit scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = torch.nn.ModuleDict({name: torch.nn.Linear(WIDTH, WIDTH).double() for name in NAMES})
        self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def loss(self, rows: dict[str, torch.Tensor], valid: torch.Tensor, **how: Any) -> torch.Tensor:
        embeds = {name: self.maps[name](rows[name]) for name in NAMES}
        rows = {**embeds, "region_valid": valid, "sentence_valid": ~valid}
        own, whole = gather_batch(rows, contrasted(WEIGHTS), **how)
        return fast_goal_loss(own, self.scale.exp(), WEIGHTS, whole)["loss"]


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = {name: torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) for name in NAMES}
    return rows, torch.tensor([True, False, True, True, False, True, True])


def work(rank: int, store: str, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    rows, valid = batch()
    calls = Counter()

    def count(name):
        collective = getattr(gather, name)

        def counted(*args):
            calls[name] += 1
            return collective(*args)

        setattr(gather, name, counted)

    for name in ("_ALL_GATHER", "_REDUCE_SCATTER", "gather_sizes"):
        count(name)
    for case, (shares, how) in CASES.items():
        towers = Towers()
        numbers = [number % ROWS for number in shares[rank]]
        calls.clear()
        loss = towers.loss({name: value[numbers] for name, value in rows.items()}, valid[numbers], **how)
        loss.backward()
        seen = dict(calls)
        for value in (loss, *(parameter.grad for parameter in towers.parameters())):
            dist.all_reduce(value.detach())  # shares add up; the trainer multiplies where gradients are averaged
        gradients = [p.grad.tolist() for p in towers.parameters()]
        results.put((case, rank, dist.get_world_size(), loss.item(), gradients, seen))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes computed, by case and rank."""
    context = mp.get_context("spawn")
    results = context.Queue()
    store = str(tmp_path_factory.mktemp("gather") / "store")
    processes = [context.Process(target=work, args=(rank, store, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    got = [results.get(timeout=120) for _ in range(2 * len(CASES))]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return {(case, rank): rest for case, rank, *rest in got}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(seen, case):
    towers = Towers()
    loss = towers.loss(*batch())
    loss.backward()
    for rank in (0, 1):
        size, value, gradients, calls = seen[case, rank]
        assert size == 2
        assert value == pytest.approx(loss.item(), abs=1e-6)
        for parameter, gradient in zip(towers.parameters(), gradients, strict=True):
            torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), parameter.grad, atol=1e-6, rtol=0)
        asked = {} if "even" in CASES[case][1] else {"gather_sizes": 1}
        assert calls == {"_ALL_GATHER": 1, "_REDUCE_SCATTER": 1, **asked}


def test_one_process_gathers_nothing():
    tensor = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor
