"""Which settings and data a resumed training compares: all that change its weights, and no others."""

import json
from dataclasses import fields
from types import SimpleNamespace

import datasets
import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from fastgoal import FastGoalModel, FastGoalProcessor, FastGoalTrainingArguments
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.batches.streams import StreamData
from fastgoal.trainer.training_arguments import BEST_MODEL_ARGUMENTS, WEIGHT_ARGUMENTS
from fastgoal.trainer.weight_settings import data_settings, replace_settings, rows_fingerprint
from tests.squares import write_pairs
from tests.tiny_trainers import SETTINGS, make_trainer

# Arguments that change the weights: another value, and the settings that both trainings need for it to count.
CHANGES = {
    "per_device_train_batch_size": ({"per_device_train_batch_size": 3}, {}),
    "gradient_accumulation_steps": (
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},  # the same rows at each step
        {},
    ),
    "num_train_epochs": ({"num_train_epochs": 3}, {}),
    "max_steps": ({"max_steps": 4}, {}),
    "learning_rate": ({"learning_rate": 2e-3}, {}),
    "lr_scheduler_type": ({"lr_scheduler_type": "linear"}, {}),
    "lr_scheduler_kwargs": ({"lr_scheduler_kwargs": {"num_cycles": 2}}, {}),
    "warmup_steps": ({"warmup_steps": 2}, {}),
    "optim": ({"optim": "adafactor"}, {}),
    "optim_args": ({"optim_args": "rank=8"}, None),
    "optim_target_modules": ({"optim_target_modules": ["mlp"]}, None),
    "weight_decay": ({"weight_decay": 0.1}, {}),
    "decay_all": ({"decay_all": True}, {}),
    "adam_beta1": ({"adam_beta1": 0.8}, {}),
    "adam_beta2": ({"adam_beta2": 0.9}, {}),
    "adam_epsilon": ({"adam_epsilon": 1e-3}, {}),
    "max_grad_norm": ({"max_grad_norm": 0.1}, {"optim": "sgd"}),  # AdamW divides the scale of all gradients out
    "bf16": ({"bf16": True}, {}),
    "fp16": ({"fp16": True}, None),
    "tf32": ({"tf32": True}, None),
    "neftune_noise_alpha": ({"neftune_noise_alpha": 5.0}, {}),
    "auto_find_batch_size": ({"auto_find_batch_size": True}, None),  # only if memory runs out
    "deepspeed": ({"deepspeed": {"gradient_clipping": 1}}, None),
    "load_best_model_at_end": ({"load_best_model_at_end": True}, None),
    "metric_for_best_model": ({"metric_for_best_model": "eval_loss_global"}, None),
    "greater_is_better": ({"greater_is_better": False}, None),
    "save_strategy": ({"save_strategy": "steps", "eval_strategy": "steps"}, None),
    "save_steps": ({"save_steps": 20}, None),
    "eval_strategy": ({"eval_strategy": "steps", "save_strategy": "steps"}, None),
    "eval_steps": ({"eval_steps": 20}, None),
    "eval_delay": ({"eval_delay": 1}, None),
    "seed": ({"seed": 7}, {}),
    "data_seed": ({"data_seed": 7}, {}),
    "accelerator_config": ({"accelerator_config": {"use_seedable_sampler": False}}, {}),
    "dataloader_drop_last": ({"dataloader_drop_last": True}, {"per_device_train_batch_size": 5}),
    "train_sampling_strategy": ({"train_sampling_strategy": "sequential"}, {}),
    "objective": ({"objective": "global"}, {}),
    "recipe": ({"recipe": "experimental"}, {}),
    "contrastive": ({"contrastive": "softmax"}, {"base": "siglip"}),
    "global_weight": ({"global_weight": 2.0}, {}),
    "local_weight": ({"local_weight": 1.0}, {}),
    "tsl_weight": ({"tsl_weight": 0.0}, {}),
    "sparc_weight": ({"sparc_weight": 1.0}, {}),
    "token_weight": ({"token_weight": 1.0}, {}),
    "short_weight": ({"short_weight": 1.0}, {}),
    "matryoshka_dims": ({"matryoshka_dims": [8, 4]}, {}),
    "pair_sampling": ({"pair_sampling": "any"}, {}),
    "crop_size": ({"crop_size": 16}, {}),
    "hard_negatives": ({"hard_negatives": True}, {}),
    "hard_negative_refresh": ({"hard_negative_refresh": 0.5}, {"hard_negatives": True, "learning_rate": 1e-2}),
    "l2sp_weight": ({"l2sp_weight": 0.1}, {}),
    "lora_r": ({"lora_r": 2}, {"lora_r": 4}),
    "lora_alpha": ({"lora_alpha": 16}, {"lora_r": 4}),
    "lora_target_modules": ({"lora_target_modules": ["q_proj"]}, {"lora_r": 4}),
    "freeze": ({"freeze": "text"}, {}),
    "freeze_layers": ({"freeze_layers": 1}, {}),
    "max_logit_scale": ({"max_logit_scale": 2.0}, {}),
}
# Arguments that do not: another value for the test below, None for those that only a GPU, a network or several
# processes can show, or that only one value is allowed for.
SAME = {
    # Folders, logs, names and the Hub.
    "output_dir": {},
    "overwrite_output_dir": {"overwrite_output_dir": True},
    "resume_from_checkpoint": None,
    "ignore_resume_mismatch": {"ignore_resume_mismatch": True},
    "logging_strategy": {"logging_strategy": "epoch"},
    "logging_steps": {"logging_steps": 5},
    "logging_first_step": {"logging_first_step": True},
    "logging_nan_inf_filter": {"logging_nan_inf_filter": False},
    "log_on_each_node": {"log_on_each_node": False},
    "log_level": {"log_level": "error"},
    "log_level_replica": {"log_level_replica": "error"},
    "include_num_input_tokens_seen": {"include_num_input_tokens_seen": "all"},
    "disable_tqdm": {"disable_tqdm": False},
    "run_name": {"run_name": "x"},
    "project": {"project": "x"},
    "skip_memory_metrics": {"skip_memory_metrics": False},
    "debug": None,
    **dict.fromkeys(
        ("report_to", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "push_to_hub", "hub_token")
    ),
    **dict.fromkeys(
        ("hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "local_rank")
    ),
    # Evaluation and checkpoints, unless the best model is loaded.
    "per_device_eval_batch_size": {"per_device_eval_batch_size": 3, "eval_strategy": "epoch"},
    "eval_on_start": {"eval_on_start": True},
    "prediction_loss_only": {"prediction_loss_only": True, "eval_strategy": "epoch"},
    "eval_do_concat_batches": None,
    "eval_use_gather_object": None,
    "eval_accumulation_steps": {"eval_accumulation_steps": 1, "eval_strategy": "epoch"},
    "include_for_metrics": {"include_for_metrics": ["loss"], "eval_strategy": "epoch"},
    "batch_eval_metrics": None,
    "bf16_full_eval": None,
    "fp16_full_eval": None,
    "save_only_model": {"save_only_model": True, "save_strategy": "epoch"},
    "save_on_each_node": {"save_on_each_node": True},
    "save_adapter_only": None,
    "save_total_limit": {"save_total_limit": 1, "save_strategy": "epoch"},
    "enable_jit_checkpoint": None,
    "restore_callback_states_from_checkpoint": None,
    "do_train": {"do_train": True},
    "do_eval": {"do_eval": True},
    "do_predict": {"do_predict": True},
    # An explicit choice for the resumed training.
    "ignore_data_skip": {"ignore_data_skip": True},
    # Memory, speed and devices: the same but for rounding.
    "mini_batch_size": None,
    "activation_checkpointing": {"activation_checkpointing": True},
    "activation_checkpointing_kwargs": None,
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing_kwargs": None,
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 1},
    "full_determinism": None,
    "use_cpu": None,
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode", "parallelism_config")),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph")),
    **dict.fromkeys(("ddp_backend", "ddp_timeout", "fsdp", "fsdp_config")),
    # The state of a stream compares the number of workers itself.
    "dataloader_num_workers": {"dataloader_num_workers": 1},
    "dataloader_pin_memory": {"dataloader_pin_memory": False},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "dataloader_prefetch_factor": {"dataloader_prefetch_factor": 3, "dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": None,
    "dataloader_in_order": None,
    # Only one value is allowed, or no loss of ours reads them.
    "remove_unused_columns": None,
    "length_column_name": None,
    "label_names": {"label_names": ["x"]},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "use_cache": {"use_cache": True},
    "use_liger_kernel": None,
    "liger_kernel_config": None,
}
BEST = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


def test_every_argument_is_known_to_change_the_weights_or_not():
    """A new argument, ours or of transformers, must be classified here."""
    names = {argument.name for argument in fields(FastGoalTrainingArguments)}
    assert CHANGES.keys() | SAME.keys() == names
    assert not CHANGES.keys() & SAME.keys()
    assert {*WEIGHT_ARGUMENTS, *BEST_MODEL_ARGUMENTS} <= CHANGES.keys()


def settings_of(**changes):
    return FastGoalTrainingArguments(**{**SETTINGS, **changes}).weight_settings()


RESOLVED = {
    *("objective", "recipe", "contrastive", "max_logit_scale", "data_seed", "per_device_train_batch_size"),
    *(name for name in CHANGES if name.endswith("_weight")),
}


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in {*RESOLVED, "deepspeed", "tf32", "fp16"}])
def test_arguments_that_are_used_as_given_are_compared(name):
    change, common = CHANGES[name]
    common = BEST if name in BEST_MODEL_ARGUMENTS else common or {}
    before, after = settings_of(**common), settings_of(**{**common, **change})
    json.dumps(after)
    assert {key.partition(".")[0] for key in before.keys() | after.keys() if before.get(key) != after.get(key)} & {name}


@pytest.mark.parametrize("name", sorted(RESOLVED))
def test_arguments_that_others_result_from_are_compared_by_the_result(name, tiny_bases, rows_with_short, tmp_path):
    change, common = CHANGES[name]
    base = tiny_bases[common.get("base", "clip")]
    before, after = (
        make_trainer(base, tmp_path, rows_with_short, **settings).training_settings() for settings in ({}, change)
    )
    changed = {key for key in before if before[key] != after[key]}
    expected = {"data_seed": "order_seed", "per_device_train_batch_size": "batch size", "recipe": "token_weight"}
    assert expected.get(name, name) in changed


def test_default_values_that_are_given_change_nothing(tiny_clip, rows, tmp_path):
    before, after = (
        make_trainer(tiny_clip, tmp_path, rows, **settings).training_settings()
        for settings in ({}, {"max_logit_scale": 100, "data_seed": 42, "contrastive": "softmax", "local_weight": 0.5})
    )
    assert before == after


@pytest.fixture(scope="module")
def rows_with_short(rows):
    """Rows with short captions, several pairs and captions of several lengths."""
    return [{**row, "short_captions": [row["file_name"], row["caption"][:9]]} for row in rows]


def weights_after(base, folder, data, **changes):
    settings = {"num_train_epochs": 2, **changes}
    trainer = make_trainer(base, folder, data, data, **settings)
    trainer.train()
    return torch.cat([parameter.detach().flatten().clone() for parameter in trainer.model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, common) in CHANGES.items() if common is not None])
def test_these_arguments_change_the_weights(name, tiny_bases, rows_with_short, tmp_path):
    change, common = CHANGES[name]
    base, common = tiny_bases[common.get("base", "clip")], {k: v for k, v in common.items() if k != "base"}
    before = weights_after(base, tmp_path / "before", rows_with_short, **common)
    after = weights_after(base, tmp_path / "after", rows_with_short, **{**common, **change})
    assert before.shape != after.shape or (before - after).abs().max() > 1e-5


@pytest.mark.slow
def test_these_arguments_do_not(tiny_clip, rows_with_short, tmp_path):
    before = weights_after(tiny_clip, tmp_path / "before", rows_with_short)
    for name, change in SAME.items():
        if change is not None:
            after = weights_after(tiny_clip, tmp_path / name, rows_with_short, **change)
            assert torch.equal(before, after), name


def test_training_data_are_compared(rows, tmp_path, tiny_clip):
    processor = FastGoalProcessor.from_base(str(tiny_clip))

    def changed(one, other):
        before, after = data_settings(one, processor), data_settings(other, processor)
        return {key for key in before if before[key] != after[key]}

    folders = []
    # Other pairs or captions of the same number and length.
    other_pairs = [*rows[:-1], {**rows[-1], "pairs": [{**rows[-1]["pairs"][0], "score": 0.5}]}]
    other_caption = [*rows[:-1], {**rows[-1], "caption": rows[-1]["caption"][:-2] + "x."}]
    for number, part in enumerate((rows, other_pairs, other_caption)):
        folders.append(str(write_pairs(part, tmp_path / str(number) / "data").parent))
    same, *others = folders
    for load in (TrainingData, StreamData):
        assert changed(load(same), load(same)) == set()
        for other in others:
            assert changed(load(same), load(other)) == {"data"}
    assert changed(TrainingData(same), TrainingData(same, limit=5)) == {"rows"}
    assert changed(StreamData(same), StreamData(same, window=7)) == {"shuffle_window"}
    # Rows in memory.
    table = [datasets.Dataset.from_parquet(f"{folder}/data/*.parquet", cache_dir=tmp_path) for folder in folders]
    for one, part, more in ((rows, other_pairs, other_caption), table):
        assert changed(one, one) == set()
        assert changed(one, part) == changed(one, more) == {"data"}
    assert rows_fingerprint(table[0].select(range(5))) == rows_fingerprint(TrainingData(table[0], limit=5))
    assert rows_fingerprint(table[0].map(lambda row: row, keep_in_memory=True)) == rows_fingerprint(table[0])
    moved = [{**row, "image": "elsewhere.png"} for row in rows]
    assert changed(rows, moved) == {"data"}
    assert rows_fingerprint(SimpleNamespace()) is None
    assert rows_fingerprint([1, 2]) is None


def test_the_processor_is_compared(tiny_clip, rows, tmp_path):
    marks = [data_settings(rows, FastGoalProcessor.from_base(str(tiny_clip)))["processor"] for _ in range(2)]
    for change in (
        lambda processor: setattr(processor.image_processor, "image_mean", (0.5, 0.5, 0.5)),
        lambda processor: setattr(processor.tokenizer, "model_max_length", 77),
        lambda processor: processor.tokenizer.add_tokens(["unheard"]),
        lambda processor: setattr(processor, "language", "de"),
    ):
        processor = FastGoalProcessor.from_base(str(tiny_clip))
        change(processor)
        marks.append(data_settings(rows, processor)["processor"])
    assert len({*marks}) == 5
    assert marks[0] == marks[1]
    # Running it changes nothing.
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    processor(text=["a"], padding="max_length", truncation=True)
    assert data_settings(rows, processor)["processor"] == marks[0]


@pytest.mark.parametrize(
    ("settings", "is_compared"),
    [({}, False), ({"l2sp_weight": 0.1}, True), ({"lora_r": 4}, True), ({"peft_config": LoraConfig(r=4)}, True)],
)
def test_the_base_is_compared_if_a_checkpoint_does_not_hold_it(settings, is_compared, tiny_clip, rows, tmp_path):
    if "peft_config" in settings:
        settings["peft_config"].target_modules = {"q_proj"}
    marks = []
    for value in (0.0, 0.0, 0.1):
        model = FastGoalModel.from_base(str(tiny_clip))
        model.visual_projection.weight.data[0, 0] += value
        marks.append(make_trainer(tiny_clip, tmp_path, rows, model=model, **settings).training_settings()["base"])
    assert marks[0] == marks[1]
    assert (marks[0] is not None) == (marks[0] != marks[2]) == is_compared


class AtStart(TrainerCallback):
    """Note the settings of the optimizer as a training begins, and the learning rate of each step."""

    def __init__(self):
        self.groups, self.rates = [], []

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.groups = [dict(group) for group in optimizer.param_groups]

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])


def test_an_allowed_change_takes_effect(tiny_clip, rows, tmp_path):
    """A training that resumes with other values uses them, not those in the optimizer's state."""
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tiny_clip, tmp_path, rows, **settings).train()
    change = {"learning_rate": 3e-3, "weight_decay": 0.2, "adam_beta1": 0.5, "adam_epsilon": 1e-4}
    noted, whole = AtStart(), AtStart()
    allowed = {"callbacks": [noted], "ignore_resume_mismatch": True}
    checkpoint = str(tmp_path / "checkpoint-2")
    make_trainer(tiny_clip, tmp_path / "a", rows, **settings, **change, **allowed).train(checkpoint)
    make_trainer(tiny_clip, tmp_path / "b", rows, **settings, **change, callbacks=[whole]).train()
    assert noted.rates == pytest.approx(whole.rates[2:])
    for group, expected in zip(noted.groups, whole.groups, strict=True):
        assert {k: v for k, v in group.items() if k not in ("params", "lr")} == {
            k: v for k, v in expected.items() if k not in ("params", "lr")
        }
    assert noted.groups[0]["weight_decay"] == 0.2
    with pytest.raises(ValueError, match=r"`weight_decay` was 0.05 and is now 0.2"):
        make_trainer(tiny_clip, tmp_path / "c", rows, **settings, weight_decay=0.2).train(checkpoint)
    with pytest.raises(ValueError, match=r"`max_grad_norm` was 1.0 and is now 0.5"):
        make_trainer(tiny_clip, tmp_path / "c", rows, **settings, max_grad_norm=0.5).train(checkpoint)


def test_a_rate_of_zero_is_not_scaled():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    replace_settings(optimizer, scheduler, [{**optimizer.param_groups[0], "initial_lr": 0.1}])
    assert scheduler.base_lrs == [0.1]
