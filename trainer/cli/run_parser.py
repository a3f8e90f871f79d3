"""The parser of a training's settings, with help in groups: our own settings first, in a line or two each."""

import argparse
import copy
import re
import sys
from dataclasses import fields
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from .parser import HelpText, Parser
from .usage import ABOUT

GROUPS: dict[str, list[str]] = {
    title: names.split()
    for title, names in {
        "model and data": """
            model train_data eval_data eval_also form train_split eval_split image_column caption_column
            image_folder captions max_text_length max_train_rows max_eval_rows allow_outside_files streaming
            shuffle_window
        """,
        "objective": """
            recipe objective contrastive global_weight local_weight tsl_weight sparc_weight token_weight
            short_weight l2sp_weight matryoshka_dims pair_sampling hard_negatives hard_negative_refresh
            max_logit_scale crop_size
        """,
        "adapters and frozen layers": "lora_r lora_alpha lora_target_modules save_adapter_only freeze freeze_layers",
        "optimization": """
            num_train_epochs max_steps learning_rate lr_scheduler_type warmup_steps weight_decay decay_all
            max_grad_norm per_device_train_batch_size mini_batch_size gradient_accumulation_steps
            dataloader_drop_last train_sampling_strategy dataloader_num_workers dataloader_persistent_workers
            bf16 seed
        """,
        "processes": "num_processes accelerate_config use_cpu",
        "evaluation and log": """
            eval_strategy eval_on_start per_device_eval_batch_size metric_for_best_model logging_steps report_to
        """,
        "output and checkpoints": """
            output_dir overwrite_output_dir save_strategy save_steps save_total_limit resume_from_checkpoint
            ignore_resume_mismatch license card_images push_to_hub hub_model_id
        """,
    }.items()
}
"""The settings of the short help. Others that only our arguments have follow in a group of their own."""
WITHOUT_EFFECT = ("do_train", "do_eval", "do_predict", "remove_unused_columns")
_SENTENCE = re.compile(r".*?\.(?=\s|$)", re.DOTALL)


class RunParser(Parser, HfArgumentParser):
    """The parser of the settings of a training."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--help-all", action=_HelpAll, help="describe every option at length and exit")

    def format_help(self) -> str:
        return f"{ABOUT.format(prog=self.prog)}\n{self.format_options()}"

    def format_options(self, is_complete: bool = False) -> str:
        """Return the options in groups: ours with the first sentence of their text, or all with the whole text."""
        actions: dict[str, list[argparse.Action]] = {}
        for action in self._get_optional_actions():
            if isinstance(action, _HelpAll | argparse._HelpAction):
                continue
            actions.setdefault(action.dest, []).append(action)
        formatter: Any = HelpText(self.prog, max_help_position=24 if is_complete else 34)
        theirs = TrainingArguments.__dataclass_fields__
        own = [
            field.name for kind in self.dataclass_types for field in fields(kind) if theirs.get(field.name) is not field
        ]
        grouped = {name for names in GROUPS.values() for name in names}
        groups = {**GROUPS, "others": [name for name in own if name not in (*grouped, *WITHOUT_EFFECT)]}
        if is_complete:
            shown = {name for names in groups.values() for name in names}
            groups["of transformers.TrainingArguments"] = [name for name in actions if name not in shown]
        for title, names in groups.items():
            formatter.start_section(title)
            for name in names:
                formatter.add_arguments(actions[name] if is_complete else [_brief(actions[name][0])])
            formatter.end_section()
        return str(formatter.format_help())


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: Any, *args: object, **kwargs: object) -> None:
        parser._print_message(
            f"{ABOUT.format(prog=parser.prog)}\n{parser.format_options(is_complete=True)}", sys.stdout
        )
        parser.exit()


def _brief(action: argparse.Action) -> argparse.Action:
    """Return an option with its first name and the first sentence of its text."""
    brief = copy.copy(action)
    sentence = _SENTENCE.match(brief.help or "")
    brief.help = sentence[0] if sentence else brief.help
    brief.option_strings = brief.option_strings[:1]
    if brief.choices is None or len(list(brief.choices)) > 4:
        values: dict[Any, str] = {int: "N", float: "X"}
        brief.metavar = brief.metavar or values.get(brief.type, "" if brief.nargs == "?" else "VALUE")
    if brief.nargs == "?":  # of booleans
        brief.nargs = 0
    return brief
