"""The parameters of the trainer, what it refuses, and what it writes into the model and the processor."""

import json
from dataclasses import asdict
from inspect import signature

import pytest
import torch
from peft import IA3Config, LoraConfig
from transformers import AutoTokenizer, CLIPModel, Trainer, TrainingArguments

from fastgoal import FastGoalCLIPModel, FastGoalModel, FastGoalProcessor, FastGoalTrainer, FastGoalTrainingArguments
from fastgoal.processing.data.pairs_dataset import MANIFEST
from fastgoal.trainer.batches.rows import TrainingData
from fastgoal.trainer.card import CardOptions
from fastgoal.trainer.objectives import OBJECTIVES
from tests.squares import write_pairs
from tests.tiny_trainers import make_trainer

SAVED = {
    **{name: {"objective": name} for name in OBJECTIVES},
    "weights": {"global_weight": 0.25, "sparc_weight": 2.0, "token_weight": 0.5, "short_weight": 0.75},
    "matryoshka": {"matryoshka_dims": [8, 3]},
    "siglip": {"base": "siglip2", "sparc_weight": 0.5},
    "siglip, matryoshka": {"base": "siglip2", "matryoshka_dims": [4]},
    "siglip, softmax": {"base": "siglip2", "contrastive": "softmax", "global_weight": 0.5},
    "siglip, global, softmax": {"base": "siglip2", "contrastive": "softmax", "objective": "global"},
    "smaller crops": {"crop_size": 16},
    "metaclip2": {"base": "metaclip2", "objective": "sparc"},
}


@pytest.mark.parametrize("case", SAVED)
def test_a_saved_model_computes_the_loss_it_was_trained_with(case, tiny_bases, rows, tmp_path):
    changes = {"base": "clip", "max_steps": 1, "card": CardOptions(images=False), **SAVED[case]}
    rows = [{**row, "short_captions": row["caption"][:9]} for row in rows]
    trainer = make_trainer(tiny_bases[changes.pop("base")], tmp_path, rows, **changes)
    trainer.train()
    trainer.save_model()
    batch = trainer.data_collator(rows[:5])
    expected = trainer.compute_loss(trainer.model.eval(), dict(batch))
    saved = FastGoalModel.from_pretrained(tmp_path)
    assert {name: getattr(saved.config, name) for name in asdict(trainer.objective.weights)} == asdict(
        trainer.objective.weights
    )
    torch.testing.assert_close(saved(**batch, return_loss=True).loss, expected)
    # The base's own objective would be another loss.
    other = FastGoalModel.from_base(saved)
    for name, value in {
        **asdict(OBJECTIVES["fast_goal"].weights),
        "contrastive": None,
        "matryoshka_dims": None,
    }.items():
        setattr(other.config, name, value)
    assert saved.config.crop_size == changes.get("crop_size")
    if trainer.objective.needs_pairs:
        assert batch["local_pixel_values"].shape[2:] == (changes.get("crop_size", 32),) * 2
    assert ("crop_size" in (tmp_path / "README.md").read_text()) == ("crop_size" in changes)
    is_default = case in ("fast_goal", "goal", "global", "smaller crops")
    assert torch.allclose(other(**batch, return_loss=True).loss, expected) == is_default


def test_the_parameters_are_those_of_transformers():
    theirs = list(signature(Trainer.__init__).parameters)
    ours = signature(FastGoalTrainer.__init__).parameters
    assert list(ours) == [*theirs, "peft_config", "card", "max_text_length"]
    for name, parameter in signature(Trainer.__init__).parameters.items():
        assert ours[name].default == parameter.default, name
    assert list(signature(FastGoalTrainer.train).parameters) == list(signature(Trainer.train).parameters)


@pytest.mark.parametrize("name", ["model_init", "compute_loss_func", "preprocess_logits_for_metrics"])
def test_what_cannot_work_is_refused_by_name(name, tiny_clip, tmp_path):
    args = FastGoalTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=f"`{name}` is not supported"):
        FastGoalTrainer(str(tiny_clip), args, **{name: lambda *args: None})


@pytest.mark.parametrize("dims", [[0], [8, 8], [17], [4.0], []])
def test_dimensions_that_the_embeddings_lack_are_refused(dims, tiny_clip, rows, tmp_path):
    with pytest.raises(ValueError, match=r"`matryoshka_dims`.*1 to 16"):
        make_trainer(tiny_clip, tmp_path, rows, matryoshka_dims=dims)


@pytest.mark.parametrize("length", [None, 100])
def test_a_name_loads_the_model_and_its_processor(length, tiny_clip, rows, tmp_path):
    args = FastGoalTrainingArguments(str(tmp_path), use_cpu=True, dataloader_num_workers=0)
    trainer = FastGoalTrainer(tiny_clip, args, train_dataset=rows, max_text_length=length)
    expected = FastGoalModel.from_base(str(tiny_clip), length)
    assert type(trainer.model) is FastGoalCLIPModel
    for name, value in expected.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    assert trainer.processing_class.tokenizer.model_max_length == (length or 248)
    assert trainer.card.base_model == str(tiny_clip)
    own = FastGoalProcessor.from_base(str(tiny_clip), length)
    assert FastGoalTrainer(tiny_clip, args, processing_class=own, max_text_length=length).processing_class is own


def test_wrong_models_are_refused(tiny_clip, tiny_bases, tmp_path):
    args = FastGoalTrainingArguments(str(tmp_path), use_cpu=True)
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    with pytest.raises(TypeError, match=r"`model` .*got CLIPModel.*FastGoalModel\.from_base\(model\)"):
        FastGoalTrainer(CLIPModel.from_pretrained(tiny_clip), args, processing_class=processor)
    with pytest.raises(TypeError, match=r"`model` .*got NoneType"):
        FastGoalTrainer(args=args, processing_class=processor)
    with pytest.raises(TypeError, match="`args` must be FastGoalTrainingArguments, got TrainingArguments"):
        FastGoalTrainer(str(tiny_clip), TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match=r"`max_text_length`.*`model`"):
        FastGoalTrainer(FastGoalModel.from_base(str(tiny_clip)), args, max_text_length=100)
    with pytest.raises(ValueError, match="nowhere"):
        FastGoalTrainer(tmp_path / "nowhere", args)
    with pytest.raises(ValueError, match="`processing_class`"):
        FastGoalTrainer(FastGoalModel.from_base(str(tiny_clip)), args)
    other = FastGoalProcessor(processor.image_processor, AutoTokenizer.from_pretrained(tiny_bases["metaclip2"]))
    with pytest.raises(ValueError, match=rf"tokenizer has {len(other.tokenizer)} tokens, .* 514"):
        FastGoalTrainer(FastGoalModel.from_base(str(tiny_clip)), args, processing_class=other)


def test_an_optimizer_of_other_weights_is_refused(tiny_clip, rows, tmp_path):
    model = FastGoalModel.from_base(str(tiny_clip))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    trainer = make_trainer(tiny_clip, tmp_path, rows, model=model, optimizers=(optimizer, None), max_steps=1)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    for changes in ({"model": str(tiny_clip)}, {"model": model, "lora_r": 2}):
        with pytest.raises(ValueError, match="`optimizers`"):
            make_trainer(tiny_clip, tmp_path, rows, optimizers=(optimizer, None), **changes)


def test_arguments_stay_as_they_were_given(tiny_bases, rows, tmp_path):
    """What the trainer resolves lies on the trainer."""
    for base, limit in (("clip", 100.0), ("siglip2", 0.0)):
        args = FastGoalTrainingArguments(
            str(tmp_path / base),
            recipe="experimental",
            hard_negatives=False,
            max_steps=1,
            per_device_train_batch_size=4,
            dataloader_num_workers=0,
            hub_token="secret",
            use_cpu=True,
        )
        before, text = dict(vars(args)), args.to_json_string()
        trainer = FastGoalTrainer(str(tiny_bases[base]), args, train_dataset=rows)
        trainer.train()
        assert trainer.args is args
        assert (vars(args), args.to_json_string()) == (before, text)
        assert (args.short_weight, trainer.objective.weights.short_weight) == (0.3, 0.0)
        assert (args.max_logit_scale, trainer.max_logit_scale) == (None, limit)
        assert b"secret" not in (tmp_path / base / "checkpoint-1/training_args.bin").read_bytes()


def test_the_language_of_the_captions_is_that_of_the_data(tiny_clip, rows, tmp_path):
    folder = write_pairs(rows, tmp_path / "pairs")
    (folder / MANIFEST).write_text(json.dumps({"settings": {"language": "de"}}))
    trainer = make_trainer(tiny_clip, tmp_path / "out", TrainingData(str(folder)))
    trainer.save_model()
    assert FastGoalProcessor.from_pretrained(tmp_path / "out").language == "de"
    processor = FastGoalProcessor.from_base(str(tiny_clip))
    processor.language = "fr"
    make_trainer(tiny_clip, tmp_path / "out", rows, processing_class=processor)  # these rows do not say
    assert processor.language == "fr"


def test_peft_config_is_an_adapter_of_lora_arguments(tiny_clip, rows, tmp_path):
    """The same settings given in both ways train the same weights."""
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "fc1"])
    by_config = make_trainer(tiny_clip, tmp_path / "a", rows, peft_config=config, max_steps=2, save_strategy="no")
    by_arguments = make_trainer(
        tiny_clip, tmp_path / "b", rows, lora_r=3, lora_alpha=5, lora_target_modules=["q_proj", "fc1"], max_steps=2
    )
    for trainer in (by_config, by_arguments):
        trainer.train()
    expected = by_arguments.model.state_dict()
    for name, value in by_config.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert config.base_model_name_or_path is None  # the caller's own stays as it was


@pytest.mark.parametrize("changes", [{"lora_r": 2}, {"freeze": "text"}, {"freeze_layers": 1}])
def test_peft_config_is_not_combined_with_arguments(changes, tiny_clip, rows, tmp_path):
    with pytest.raises(ValueError, match=f"`peft_config` .*`{next(iter(changes))}`, got"):
        make_trainer(tiny_clip, tmp_path, rows, peft_config=LoraConfig(), **changes)


def test_only_lora_is_taken(tiny_clip, rows, tmp_path):
    with pytest.raises(TypeError, match=r"`peft_config` must be a peft\.LoraConfig, got IA3Config"):
        make_trainer(tiny_clip, tmp_path, rows, peft_config=IA3Config())


def test_an_adapter_with_other_settings_does_not_resume(tiny_clip, rows, tmp_path):
    changes = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "card": CardOptions(images=False)}
    config = LoraConfig(r=2, target_modules=["q_proj"])
    make_trainer(tiny_clip, tmp_path, rows, peft_config=config, **changes).train()
    for other in ({"r": 2, "lora_dropout": 0.5}, {"r": 4}, {"r": 2, "lora_alpha": 1}):
        trainer = make_trainer(
            tiny_clip, tmp_path, rows, peft_config=LoraConfig(target_modules=["q_proj"], **other), **changes
        )
        name = [*other][-1]
        with pytest.raises(ValueError, match=rf"`peft_config\.{name}` was .* is now {other[name]}"):
            trainer.train(resume_from_checkpoint=True)
    make_trainer(tiny_clip, tmp_path, rows, peft_config=config, **changes).train(resume_from_checkpoint=True)


HOOKS = {
    # No extra step after a resume at the end, and the evaluation that an interrupt left out.
    "_run_epoch": ["num_update_steps_per_epoch", "trial", "ignore_keys_for_eval", "resume_from_checkpoint"],
    # Streams, and rows that know their epoch.
    "_get_dataloader": ["dataset", "is_training"],
    # Settings of the arguments instead of the checkpoint's, with `ignore_resume_mismatch`.
    "_load_optimizer_and_scheduler": ["checkpoint"],
    # A checkpoint after an evaluation that was interrupted.
    "_maybe_log_save_evaluate": [],
    # Evaluations without the default metric.
    "_determine_best_metric": ["metrics", "trial"],
    # The newest checkpoint stays.
    "_finalize_training": [],
    # Checkpoints that appear when they are complete, and are pushed then.
    "_get_output_dir": ["trial"],
    "_save_checkpoint": ["model", "trial"],
    "_push_from_checkpoint": ["checkpoint_folder"],
    # Weights that are finite, without the token.
    "_save": ["output_dir", "state_dict"],
}
"""Private methods of `transformers.Trainer` that ours overrides, why, and the parameters that it relies on."""
CALLED = {
    "_prepare_inputs": ["inputs"],
    "_get_train_sampler": ["train_dataset"],
    "_evaluate": ["trial", "ignore_keys_for_eval"],
}
"""Private methods that it only calls."""


@pytest.mark.parametrize(("name", "parameters"), [*HOOKS.items(), *CALLED.items()])
def test_transformers_still_has_the_hook(name, parameters):
    hook = getattr(Trainer, name, None)
    assert hook is not None, f"transformers.Trainer has no {name} any more, which FastGoalTrainer overrides or calls."
    missing = [parameter for parameter in parameters if parameter not in signature(hook).parameters]
    assert not missing, f"transformers.Trainer.{name} has no parameter {missing}, which FastGoalTrainer relies on."


def test_no_other_hook_is_overridden():
    private = {name for name in vars(FastGoalTrainer) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if hasattr(Trainer, name)} == {*HOOKS}


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({"per_device_train_batch_size": 1}, True),
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, True),  # no negatives either
        ({"per_device_train_batch_size": 2}, False),
        ({"per_device_train_batch_size": 1, "global_weight": 0.0, "local_weight": 0.0}, False),  # TSL
    ],
)
def test_a_contrastive_batch_of_one_row_is_warned_of(tiny_clip, rows, tmp_path, caplog, settings, warns):
    make_trainer(tiny_clip, tmp_path, rows, **settings)
    assert ("`per_device_train_batch_size` is 1" in caplog.text) == warns


def test_a_compiled_training_has_few_lengths_of_texts(tiny_clip, rows, tmp_path):
    assert make_trainer(tiny_clip, tmp_path, rows, torch_compile=True).data_collator.pad_to_multiple_of == 8
    assert make_trainer(tiny_clip, tmp_path, rows).data_collator.pad_to_multiple_of == 1
