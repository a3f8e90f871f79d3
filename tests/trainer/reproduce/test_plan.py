from pathlib import Path

import pytest

from fastgoal.trainer.reproduce.plan import plan, run_commands
from fastgoal.trainer.reproduce.rows import find_row


def test_the_batch_is_shared_by_the_processes(tmp_path):
    made = plan(find_row("docci-fastgoal-b16-docci"), tmp_path / "a b", tmp_path, num_processes=4, mini_batch_size=8)
    words = made.command("train")
    assert words[words.index("--per_device_train_batch_size") + 1] == "16"
    assert words[-4:] == ["--num_processes", "4", "--mini_batch_size", "8"]
    assert made.command("pairs")[2] == str(tmp_path / "a b" / "docci")


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ("docci-fastgoal-b16-glit", {}, "`train_data` is required"),
        ("docci-clip-b16", {"train_data": "own"}, "`train_data` must be left out .*'own'"),
        ("docci-clip-b16", {"num_processes": 2}, "`num_processes` must be left out"),
        ("docci-goal-b16-dci", {"detector": "yolos"}, "`detector` must be left out"),
        ("docci-fastgoal-b16-docci", {"num_processes": 3}, "`num_processes` must divide .* 64, got 3"),
    ],
)
def test_arguments_that_do_not_belong_to_the_row(tmp_path, row, options, message):
    with pytest.raises(ValueError, match=message):
        plan(find_row(row), tmp_path, tmp_path, **options)


def fake_run(ran, fail=None):
    def run(words):
        ran.append(words[1])
        if words[1] == fail:
            return 3
        output = Path(words[words.index("--output_dir" if words[1] == "train" else "--output") + 1])
        file = output if words[1] == "evaluate" else output / "config.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        return 0

    return run


def test_what_is_done_does_not_run_again(tmp_path):
    made = plan(find_row("docci-fastgoal-b16-docci"), tmp_path, tmp_path / "out")
    ran: list[str] = []
    assert run_commands(made, fake_run(ran, fail="train"), lambda line: None) == 3
    assert run_commands(made, fake_run(ran), lambda line: None) == 0
    assert run_commands(made, fake_run(ran), lambda line: None) == 0
    assert ran == ["pairs", "train", "pairs", "train", "evaluate", "pairs"]
    # A model that is gone is trained again, and measured again.
    (tmp_path / "out" / "fastgoal-b16-docci" / "config.json").unlink()
    run_commands(made, fake_run(ran), lambda line: None)
    assert ran[6:] == ["pairs", "train", "evaluate"]
    # Another row in the same folder uses the same pairs; a changed command does not count as done.
    run_commands(plan(find_row("docci-global-b16-docci"), tmp_path, tmp_path / "out"), fake_run(ran), lambda line: None)
    other = plan(find_row("docci-fastgoal-b16-docci"), tmp_path, tmp_path / "out", num_processes=2)
    run_commands(other, fake_run(ran), lambda line: None)
    assert ran[9:] == ["pairs", "train", "evaluate"] * 2


def test_a_kill_between_convert_and_its_record(tmp_path):
    made = plan(find_row("docci-clip-b16"), tmp_path, tmp_path / "out")
    ran: list[str] = []

    def killed(words):
        fake_run(ran)(words)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_commands(made, killed, lambda line: None)
    assert run_commands(made, fake_run(ran), lambda line: None) == 0
    assert ran == ["convert", "evaluate"]
