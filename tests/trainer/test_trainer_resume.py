"""A training that goes on from the middle of an epoch ends at the same weights as one that was never stopped, in one
process and in two; and two processes do what one does."""

import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from fastgoal import FastGoalCLIPModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.batches.streams import StreamData
from tests.squares import write_pairs

BATCH, ROWS = 4, 11  # three batches in an epoch, the last one of 3 rows
CASES = {
    "paper": {},
    "accumulated": {"gradient_accumulation_steps": 2, "save_steps": 3},
    "cached": {"mini_batch_size": 1},
    "lengths": {"train_sampling_strategy": "group_by_length"},
    "near, lengths": {"hard_negatives": True, "train_sampling_strategy": "group_by_length"},
    "adapter": {"lora_r": 4, "freeze_layers": 1},
    "frozen": {"freeze": "vision"},
    "streamed": {"max_steps": 6, "pair_sampling": "any"},
    "best": {"recipe": "experimental", "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
}


def weights(clip, pairs, folder, processes, case, resume):
    """The weights after two epochs, of a training that saves itself in the middle of the second."""
    args = FastGoalTrainingArguments(
        **{
            "output_dir": folder,
            "per_device_train_batch_size": BATCH // processes,
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "adam_epsilon": 1e-3,  # of a gradient that is 0 but for rounding Adam would make a step as of any other
            "dataloader_num_workers": 0,
            "save_strategy": "steps",
            "save_steps": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            **CASES[case],
        }
    )
    trainer = FastGoalTrainer(
        model=FastGoalCLIPModel.from_base(clip),
        args=args,
        processing_class=FastGoalProcessor.from_base(clip),
        train_dataset=StreamData(pairs, window=3) if case == "streamed" else TrainingData(pairs, limit=ROWS),
    )
    assert bool(trainer.objective.weights.short_weight) == (case == "best")
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-{args.save_steps}" if resume else None)
    assert not resume or 0 < trainer._initial_global_step < trainer.state.global_step
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])


def whole_and_resumed(clip, pairs, folder, processes):
    found = {}
    for case in CASES:
        place = os.path.join(folder, case.replace(", ", "-").replace(" ", "-"))
        found[case] = [weights(clip, pairs, place, processes, case, resume) for resume in (False, True)]
    return found


def work(rank, port, clip, pairs, folder):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    torch.save(whole_and_resumed(clip, pairs, folder, 2), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def pairs_folder(rows, tmp_path_factory):
    """The usual rows, with short captions beside."""
    folder = tmp_path_factory.mktemp("pairs")
    known = [{**row, "short_captions": [row["file_name"], row["caption"][:9]]} for row in rows]
    write_pairs(known, folder / "data")
    return folder


@pytest.fixture(scope="module")
def one(tiny_clip, pairs_folder, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield whole_and_resumed(str(tiny_clip), str(pairs_folder), str(tmp_path_factory.mktemp("one")), 1)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two(tiny_clip, pairs_folder, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("two"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, (port, str(tiny_clip), str(pairs_folder), folder), nprocs=2)
    return [torch.load(os.path.join(folder, f"{rank}.pt")) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_one_process_goes_on_as_if_never_stopped(one, case):
    whole, resumed = one[case]
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_go_on_as_if_never_stopped(two, case):
    whole, resumed = two[0][case]
    assert torch.equal(whole, resumed)
    assert torch.equal(whole, two[1][case][0])


@pytest.mark.parametrize("case", [case for case in CASES if case != "streamed"])  # which are mixed otherwise
def test_two_processes_do_what_one_does(one, two, case):
    torch.testing.assert_close(two[0][case][0], one[case][0], rtol=0, atol=2e-5)


def test_the_cases_differ(one):
    """A case that trained as another one does would prove nothing."""
    for case in ("accumulated", "lengths", "near, lengths", "best", "frozen"):
        assert (one[case][0] - one["paper"][0]).abs().max() > 1e-3
