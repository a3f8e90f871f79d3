"""Two processes against one: the same loss and the same gradients, also with an uneven last batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastgoal.modeling_fastgoal import fast_goal_loss
from fastgoal.trainer.parallel.gather import gather_with_gradient

NAMES = ("image_embeds", "text_embeds", "local_image_embeds", "local_text_embeds", "region_embeds", "sentence_embeds")
ROWS, WIDTH = 7, 5


class Towers(torch.nn.Module):
    """One linear map for each kind of embedding, and a logit scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = torch.nn.ModuleDict({name: torch.nn.Linear(WIDTH, WIDTH).double() for name in NAMES})
        self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def loss(self, rows: dict[str, torch.Tensor], valid: torch.Tensor) -> torch.Tensor:
        rows = {name: gather_with_gradient(self.maps[name](rows[name])) for name in NAMES}
        valid = gather_with_gradient(valid)
        return fast_goal_loss({**rows, "region_valid": valid, "sentence_valid": valid}, self.scale.exp())["loss"]


def batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = {name: torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64) for name in NAMES}
    return rows, torch.tensor([True, False, True, True, False, True, True])


def work(rank: int, store: str, split: int, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    towers, (rows, valid) = Towers(), batch()
    mine = slice(0, split) if rank == 0 else slice(split, ROWS)
    loss = towers.loss({name: value[mine] for name, value in rows.items()}, valid[mine])
    loss.backward()
    for parameter in towers.parameters():  # what DistributedDataParallel does
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2
    results.put((rank, dist.get_world_size(), loss.item(), [p.grad.tolist() for p in towers.parameters()]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("split", [4, 6, 1])
def test_two_processes_are_one(tmp_path, split):
    towers = Towers()
    loss = towers.loss(*batch())
    loss.backward()

    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=work, args=(rank, str(tmp_path / "store"), split, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    got = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert [(rank, size) for rank, size, _, _ in got] == [(0, 2), (1, 2)]
    for _, _, value, gradients in got:
        assert value == pytest.approx(loss.item(), abs=1e-10)
        for parameter, gradient in zip(towers.parameters(), gradients, strict=True):
            torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), parameter.grad)


def test_one_process_gathers_nothing():
    tensor = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor
