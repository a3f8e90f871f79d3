"""A resumed training ends at the same weights as an uninterrupted one, in one process and in two."""

from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.batches.streams import StreamData
from fastgoal.trainer.card import CardOptions
from tests.squares import write_pairs
from tests.tiny_trainers import make_trainer
from tests.trainer.processes import in_two_processes
from tests.trainer.small_memory import SmallMemory

BATCH, ROWS = 4, 11  # three batches per epoch, the last one of 3 rows
CASES = {
    "paper": {},
    "accumulated": {"gradient_accumulation_steps": 2, "save_steps": 3},
    "cached": {"mini_batch_size": 1},
    "halved": {"mini_batch_size": "auto"},  # the resumed training has enough memory, but starts with the same number
    "lengths": {"train_sampling_strategy": "group_by_length"},
    "near, lengths": {"hard_negatives": True, "train_sampling_strategy": "group_by_length"},
    "adapter": {"lora_r": 4, "freeze_layers": 1},
    "frozen": {"freeze": "vision"},
    "streamed": {"pair_sampling": "any"},
    "streamed by workers": {"pair_sampling": "any", "dataloader_num_workers": 2, "crop_size": 16},
    "streamed, accumulated": {"gradient_accumulation_steps": 2, "save_steps": 3},
    "experimental": {"recipe": "experimental", "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
}
STREAMED = [case for case in CASES if case.startswith("streamed")]
IN_TWO_PROCESSES = ("paper", "near, lengths", "adapter", "experimental")
FAST = ("accumulated", "adapter", "streamed by workers", "experimental")


class FirstStep(TrainerCallback):
    """Notes the step that a training begins after."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


def weights_after(clip, pairs, folder, processes, case, resume):
    """Return the weights after two epochs, of a training that saves a checkpoint in the second or resumes from it."""
    settings = {
        "per_device_train_batch_size": BATCH // processes,
        "num_train_epochs": 2,
        "adam_epsilon": 1e-3,  # AdamW makes full steps even of gradients that are 0 but for rounding
        "save_strategy": "steps",
        "save_steps": 4,
        "card": CardOptions(images=False),
        **CASES[case],
    }
    data = StreamData(str(pairs), window=3) if case in STREAMED else TrainingData(str(pairs), limit=ROWS)
    trainer = make_trainer(clip, folder, data, **settings)
    assert bool(trainer.objective.weights.short_weight) == (case == "experimental")
    if case == "halved" and not resume:
        SmallMemory(trainer, 1)
    start = FirstStep()
    trainer.add_callback(start)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-{settings['save_steps']}" if resume else None)
    assert (0 < start.step < trainer.state.global_step) == resume
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])


def whole_and_resumed(clip, pairs, folder, processes, cases):
    """Return the weights of an uninterrupted and a resumed training by case."""
    folders = {case: Path(folder, case.replace(", ", "-")) for case in cases}
    return {
        case: [weights_after(clip, pairs, folders[case], processes, case, resume) for resume in (False, True)]
        for case in cases
    }


@pytest.fixture(scope="module")
def pairs_folder(rows, tmp_path_factory):
    """Return the folder of the usual rows with short captions."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs([{**row, "short_captions": [row["file_name"], row["caption"][:9]]} for row in rows], folder / "data")
    return folder


@pytest.mark.parametrize("case", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_a_resumed_training_ends_at_the_same_weights(case, tiny_clip, pairs_folder, tmp_path):
    whole, resumed = whole_and_resumed(tiny_clip, pairs_folder, tmp_path, 1, [case])[case]
    assert torch.equal(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [STREAMED, IN_TWO_PROCESSES], ids=["streams", "rest"])
def test_two_processes_resume_and_do_what_one_does(cases, tiny_clip, pairs_folder, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = whole_and_resumed(tiny_clip, pairs_folder, tmp_path / "one", 1, cases)
    torch.set_num_threads(threads)
    arguments = (tiny_clip, pairs_folder, tmp_path / "two", 2, cases)
    first, second = in_two_processes(whole_and_resumed, *arguments, folder=tmp_path / "two")
    for case in cases:
        whole, resumed = first[case]
        assert torch.equal(whole, resumed), case
        assert torch.equal(whole, second[case][0]), case
        if case not in STREAMED:  # its rows are shuffled in another order
            torch.testing.assert_close(whole, one[case][0], rtol=0, atol=2e-5, msg=case)
    # A case that trains the same as another would prove nothing.
    for case in {*cases} & {"near, lengths", "experimental"}:
        assert (one[case][0] - one["paper"][0]).abs().max() > 1e-3, case
