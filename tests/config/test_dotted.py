"""The dotted spelling of flags gives the configuration of the flat one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from openrlhf.config.commands import DPOConfig, PPOConfig, RMConfig, SFTConfig, flat, types
from openrlhf.config.dotted import DOTTED
from openrlhf.config.parse import read

COMMANDS = (SFTConfig, RMConfig, DPOConfig, PPOConfig)

LINES = [
    (
        SFTConfig,
        "--data.dataset d --data.input_key q --data.output_key a --data.max_len 4096 --train.batch_size 256 "
        "--train.micro_batch_size 2 --actor.model_name_or_path m --ckpt.output_dir o --ds.zero_stage 2 "
        "--ds.param_dtype bf16 --adam.lr 5e-6 --adam.weight_decay 0.1 --model.gradient_checkpointing_enable "
        "--ds.packing_samples --ds.ring_attn_head_stride 2 --ds.ring_attn_size 2",
        "--dataset d --input_key q --output_key a --max_len 4096 --train_batch_size 256 --micro_train_batch_size 2 "
        "--pretrain m --save_path o --zero_stage 2 --bf16 --learning_rate 5e-6 --l2 0.1 --gradient_checkpointing "
        "--packing_samples --ring_head_stride 2 --ring_attn_size 2",
    ),
    (
        DPOConfig,
        "--model.model_name_or_path m --data.dataset d --ref.offload --model.beta 0.2 --model.ipo_enable=true "
        "--adam.betas 0.8 0.9 --ds.attn_implementation sdpa --ckpt.output_dir o",
        "--pretrain m --dataset d --ref_offload --beta 0.2 --ipo --adam_betas 0.8 0.9 "
        "--save_path o",
    ),
    (
        PPOConfig,
        "--local --actor.model_name_or_path m --reward.remote_url r.py --data.prompt_dataset d --data.max_len 2048 "
        "--rollout.max_new_tokens 512 --actor.adam.lr 1e-6 --critic.adam.lr=9e-6 --actor.adam.betas 0.9 0.98 "
        "--critic.adam.betas 0.9 0.98 --algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 8 "
        "--algo.kl.init_coef 1e-3 --algo.kl.use_loss --algo.kl.estimator k3 --critic.max_norm 0.5 "
        "--actor.max_norm 0.5 --actor.eps_clip_low_high 0.2 0.28 --temperature=0.7 --ckpt.output_dir o",
        "--local --pretrain m --remote_rm_url r.py --prompt_data d --prompt_max_len 1536 --generate_max_len 512 "
        "--actor_learning_rate 1e-6 --critic_learning_rate 9e-6 --adam_betas 0.9 0.98 "
        "--advantage_estimator group_norm --n_samples_per_prompt 8 --init_kl_coef 1e-3 --use_kl_loss "
        "--kl_estimator k3 --max_norm 0.5 --eps_clip_low_high 0.2 0.28 --temperature 0.7 --save_path o",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("command", "dotted", "ours"), LINES)
def test_a_dotted_line_says_what_the_flat_one_says(command: type, dotted: str, ours: str) -> None:
    got, expected = flat(read(command, dotted.split())), flat(read(command, ours.split()))
    clock = ("wandb_run_name", "use_tensorboard")
    assert {k: v for k, v in got.items() if k not in clock} == {k: v for k, v in expected.items() if k not in clock}


def test_every_dotted_flag_stands_for_a_flag_there_is() -> None:
    known = set().union(*(types(command) for command in COMMANDS))
    assert set(DOTTED.values()) <= known


def test_a_file_may_nest_the_names(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    nested = {
        "data": {"dataset": "d", "max_len": 128, "output_key": "a"},
        "model": {"model_name_or_path": "m"}, "adam": {"lr": "1e-5"},
        "ds": {"packing_samples": True, "lora": {"rank": 4, "target_modules": ["q_proj"]}, "param_dtype": None},
        "ckpt.output_dir": "o", "seed": 7,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(nested))
    config = read(SFTConfig, ["--config", str(file), "--data.max_len", "64"])
    assert (config.dataset.dataset, config.dataset.max_len, config.model.pretrain) == ("d", 64, "m")
    assert (config.fit.learning_rate, config.model.lora_rank, config.model.target_modules) == (1e-5, 4, ("q_proj",))
    assert (config.model.packing_samples, config.train.seed) == (True, 7)


def test_the_flat_names_of_values_that_are_switches_here_are_understood() -> None:
    line = ["--pretrain", "m", "--dataset", "d", "--output_key", "a", "--param_dtype", "bf16"]
    line += ["--attn_implementation", "flash_attention_2"]
    model = read(SFTConfig, line).model
    assert (model.bf16, model.flash_attn) == (True, True)
    model = read(SFTConfig, [*line, "--param_dtype=fp32", "--attn_implementation", "eager"]).model
    assert (model.bf16, model.flash_attn) == (False, False)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--actor.max_norm 1 --critic.max_norm 2", "--actor.max_norm 1 and --critic.max_norm 2 are one flag here"),
        ("--adam.eps 1e-8", "--adam.eps has no counterpart among the flat flags"),
        ("--data.image_key images", "--data.image_key is of models that read images"),
        ("--max_images_per_prompt 1", "--max_images_per_prompt is of models that read images"),
        ("--use_icepop", "--use_icepop is --enable_vllm_is_correction --vllm_is_correction_type icepop here"),
        ("--rollout.vllm_generate_batch_size 8", "engines get all prompts of --rollout_batch_size at once; leave it"),
        ("--param_dtype fp16", "--param_dtype takes bf16, fp32 here, not fp16"),
        ("--ds.param_dtype fp16", "--ds.param_dtype takes bf16, fp32 here, not fp16"),
        ("--data.max_len 2048", "give --rollout.max_new_tokens as well"),
        ("--data.max_len 20 --rollout.max_new_tokens 30", "--data.max_len 20 must be more than"),
        ("--data.max_len --rollout.max_new_tokens 30", "--data.max_len  must be more than"),
        ("--data.dataset d", "--dataset is not a flag of this command"),
    ],
)
def test_what_cannot_be_put_into_the_flat_form_is_refused(line: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(PPOConfig, line.split())
