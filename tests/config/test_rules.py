"""Each rule fires, names the flags that must change, and lets good configurations pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from openrlhf.config import not_built
from openrlhf.config.commands import (
    BatchInferenceConfig,
    Command,
    DPOConfig,
    InteractiveChatConfig,
    KDConfig,
    KTOConfig,
    LoraCombinerConfig,
    PPOConfig,
    PRMConfig,
    RMConfig,
    ServeRMConfig,
    SFTConfig,
    TrainCommand,
    build,
    flat,
    types,
)
from openrlhf.config.derived import (
    CriticSource,
    critic_source,
    needs_deepspeed,
    reference_source,
    reward_sources,
    reward_weights,
    role_sizes,
)
from openrlhf.config.parse import read
from openrlhf.config.ranges import RANGES, check_ranges
from openrlhf.config.rules import check, models
from openrlhf.config.rules.batches import check_workers
from openrlhf.config.rules.models import ring, tensor_parallel

SFT = {"pretrain": "model", "dataset": "a.jsonl", "output_key": "output"}
PAIRS = {"pretrain": "model", "dataset": "a.jsonl"}
KTO = {"pretrain": "model", "dataset": "a.jsonl", "output_key": "output"}
KD = {"pretrain": "model", "dataset": "a.jsonl", "teacher_model": "teacher"}
PRM = {"pretrain": "model", "dataset": "a.jsonl", "placeholder_token": "ки"}
BATCH = {"pretrain": "model", "dataset": "a.jsonl", "output_path": "out.jsonl", "eval_task": "generate"}
# Four GPUs for every role and engines on GPUs of their own.
SIZES = {f"{role}_num_gpus_per_node": 4 for role in ("actor", "critic", "ref", "reward")}
PPO = {"pretrain": "model", "prompt_data": "p.jsonl", "reward_pretrain": "rm", "vllm_num_engines": 2, **SIZES}
FILE = {**PPO, "reward_pretrain": None, "remote_rm_url": "reward.py"}
GROUPS = {"advantage_estimator": "rloo", "n_samples_per_prompt": 4}
RING = {"ring_attn_size": 2, "packing_samples": True}
SHARED = {"colocate_all_models": True, "vllm_num_engines": 4}
AGENT = {**PPO, "reward_pretrain": None, "agent_func_path": "agent.py"}
LOCAL = {"pretrain": "model", "prompt_data": "p.jsonl", "remote_rm_url": "reward.py", "local": True}
COMMANDS: dict[type[Command], dict[str, Any]] = {
    SFTConfig: SFT,
    RMConfig: PAIRS,
    DPOConfig: PAIRS,
    KTOConfig: KTO,
    KDConfig: KD,
    PRMConfig: PRM,
    PPOConfig: PPO,
    ServeRMConfig: {"reward_pretrain": "rm"},
    LoraCombinerConfig: {"model_path": "m", "lora_path": "a", "output_path": "out"},
    BatchInferenceConfig: BATCH,
    InteractiveChatConfig: {"pretrain": "model"},
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"apply_chat_template": True, "multiturn": True, "output_key": None},
        {"pretrain_mode": True, "output_key": None},
        {"dataset": "a.jsonl,b.jsonl", "dataset_probs": "0.3,0.7"},
        {"input_template": None},
        {"eval_dataset": "c.jsonl", "eval_steps": 5},
        {"save_hf_ckpt": True},
        {"use_dynamic_batch": True, "train_max_tokens_per_gpu": 100, "train_batch_size": 3},
        {"max_norm": 0.0, "learning_rate": 0.0},
    ],
)
def test_good_sft(changed: dict[str, Any]) -> None:
    check(build(SFTConfig, SFT | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        GROUPS,
        SHARED,
        SHARED | {"vllm_num_engines": 2, "vllm_tensor_parallel_size": 2, "vllm_enable_sleep": True},
        {"colocate_actor_ref": True, "deepspeed_enable_sleep": True},
        {"colocate_actor_ref": True, "critic_num_gpus_per_node": 2},
        {"colocate_critic_reward": True, "actor_num_gpus_per_node": 8},
        {"colocate_actor_ref": True, "ref_num_gpus_per_node": 2, "init_kl_coef": 0.0},  # no reference to share with
        {"lora_rank": 8, "ref_num_gpus_per_node": 8, "ref_reward_offload": True},  # for the reward model
        {"reward_pretrain": None, "remote_rm_url": "reward.py", "ref_reward_offload": True},  # for the reference
        {"advantage_estimator": "reinforce", "critic_num_gpus_per_node": 7},  # no critic to feed
        {"use_kl_loss": True, "kl_estimator": "k3"},
        {"kl_target": 0.1},
        {"critic_pretrain": "critic"},
        {"prompt_data": "a,b,c", "prompt_data_probs": "0.1,0.4,0.5"},
        {"normalize_reward": True},
        {"label_key": "label"},
        {"reward_pretrain": "a,b"},
        {"reward_pretrain": "a,b", "reward_weights": (0.3, 0.7), "normalize_reward": True},
        {"reward_pretrain": "a,b", "remote_rm_url": "reward.py", "reward_weights": (0.3, 0.7, -1.0)},
        {"reward_weights": (2.0,)},
        {"use_dynamic_batch": True, "rollout_max_tokens_per_gpu": 1000, "train_batch_size": 4},
        {"async_train": True},
        {"vllm_num_engines": 0},
        {"vllm_num_engines": 0, "colocate_all_models": True, "zero_stage": 3},
        {"async_train": True, "async_queue_size": 3, "max_staleness": 2, "partial_rollout": True},
        {"async_train": True, "colocate_actor_ref": True, "deepspeed_enable_sleep": True},
        {"freezing_actor_steps": 2, "enable_ema": True, "ema_beta": 0.5},
        {**FILE, **GROUPS, "dynamic_filtering": True, "async_train": True},
        {**FILE, **GROUPS, "dynamic_filtering": True, "dynamic_filtering_reward_range": (0.1, 0.9)},
        {"eval_dataset": "e", "eval_steps": 3, "eval_temperature": 0.0, "best_metric_key": "eval_default_pass1"},
    ],
)
def test_good_ppo(changed: dict[str, Any]) -> None:
    check(build(PPOConfig, PPO | changed))
    check(build(PPOConfig, LOCAL | {"rollout_batch_size": 10, "train_batch_size": 5, "micro_train_batch_size": 5}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_batch_size": 12}, ["--train_batch_size 12", "--micro_train_batch_size 8", "--train_batch_size 16"]),
        ({"train_max_tokens_per_gpu": 100}, ["--train_max_tokens_per_gpu", "--use_dynamic_batch"]),
        (
            {"use_dynamic_batch": True, "micro_train_batch_size": 4},
            [
                "--micro_train_batch_size",
                "--use_dynamic_batch",
                "--train_max_tokens_per_gpu",
                "leave one of the two out",
            ],
        ),
        ({"input_template": "User: "}, ["--input_template", "{}"]),
        ({"input_template": "User: {}\\nAssistant: "}, ["--input_template", "$'User: {}\\nAssistant: '"]),
        (
            {"apply_chat_template": True, "input_template": "Q: {}"},
            ["--apply_chat_template", "--input_template", "leave one out"],
        ),
        ({"dataset_probs": "0.5,0.5"}, ["--dataset_probs", "2 shares", "--dataset has 1 part"]),
        ({"dataset": "a,b", "dataset_probs": "0.5,0.6"}, ["--dataset_probs", "sum to 1"]),
        ({"dataset": "a,b", "dataset_probs": "-0.5,1.5"}, ["--dataset_probs", "above 0"]),
        ({"dataset": "a,b", "dataset_probs": "half,half"}, ["--dataset_probs", "numbers"]),
        ({"output_key": None}, ["--output_key", "--apply_chat_template", "--pretrain_mode"]),
        ({"multiturn": True}, ["--multiturn", "--apply_chat_template"]),
        ({"pretrain_mode": True}, ["--pretrain_mode", "leave out --output_key"]),
        (
            {"pretrain_mode": True, "output_key": None, "multiturn": True, "apply_chat_template": True},
            ["--pretrain_mode", "--multiturn, --apply_chat_template"],
        ),
        ({"eval_steps": 5}, ["--eval_steps", "--eval_dataset"]),
        ({"save_steps": 5, "disable_ds_ckpt": True}, ["--disable_ds_ckpt", "--save_hf_ckpt"]),
        ({"disable_ds_ckpt": True}, ["--disable_ds_ckpt", "--save_steps"]),
        ({"use_ds_universal_ckpt": True}, ["--use_ds_universal_ckpt", "--load_checkpoint"]),
    ],
)
def test_bad_sft(changed: dict[str, Any], words: list[str]) -> None:
    refused(build(SFTConfig, SFT | changed), words)


GOOD_PAIRS: list[dict[str, Any]] = [
    {},
    {"apply_chat_template": True},
    {"apply_chat_template": True, "prompt_key": "prompt"},
    {"input_template": "Q: {}", "prompt_key": "prompt"},
    {"dataset": "a.jsonl,b.jsonl", "dataset_probs": "0.3,0.7"},
    {"eval_dataset": "c.jsonl", "eval_steps": 5},
    {"train_batch_size": 4, "micro_train_batch_size": 4},
]
BAD_PAIRS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"train_batch_size": 9, "micro_train_batch_size": 2},
        ["--train_batch_size 9", "--micro_train_batch_size 2", "--train_batch_size 10"],
    ),
    ({"input_template": "User: ", "prompt_key": "prompt"}, ["--input_template", "{}"]),
    ({"input_template": "Q: {}"}, ["--input_template", "--prompt_key"]),
    (
        {"apply_chat_template": True, "input_template": "Q: {}", "prompt_key": "prompt"},
        ["--apply_chat_template", "--input_template", "leave one out"],
    ),
    ({"dataset_probs": "0.5,0.5"}, ["--dataset_probs", "2 shares", "--dataset has 1 part"]),
    ({"dataset": "a,b", "dataset_probs": "0.5,0.6"}, ["--dataset_probs", "sum to 1"]),
    ({"eval_steps": 5}, ["--eval_steps", "--eval_dataset"]),
    ({"lr_scheduler": "cosin"}, ["--lr_scheduler 'cosin'"]),
    ({"max_len": 0}, ["--max_len is 0"]),
]


@pytest.mark.parametrize("command", [RMConfig, DPOConfig])
@pytest.mark.parametrize("changed", GOOD_PAIRS)
def test_good_pairs(command: Any, changed: dict[str, Any]) -> None:
    check(build(command, PAIRS | changed))


@pytest.mark.parametrize("command", [RMConfig, DPOConfig])
@pytest.mark.parametrize(("changed", "words"), BAD_PAIRS)
def test_bad_pairs(command: Any, changed: dict[str, Any], words: list[str]) -> None:
    refused(build(command, PAIRS | changed), words)


def test_only_one_loss_of_a_reward_model_has_a_margin() -> None:
    refused(build(RMConfig, PAIRS | {"loss": "logexp", "margin_loss": True}), ["--loss logexp", "--margin_loss"])
    check(build(RMConfig, PAIRS | {"loss": "logexp", "compute_fp32_loss": True}))
    check(build(RMConfig, PAIRS | {"margin_loss": True}))


def test_ipo_is_not_smoothed() -> None:
    refused(build(DPOConfig, PAIRS | {"ipo": True, "label_smoothing": 0.1}), ["--ipo", "--label_smoothing"])
    check(build(DPOConfig, PAIRS | {"ipo": True, "nll_loss_coef": 0.2}))
    check(build(DPOConfig, PAIRS | {"label_smoothing": 0.1}))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"beta": -0.1}, ["--beta is -0.1", "above 0"]),
        ({"label_smoothing": -0.1}, ["--label_smoothing is -0.1", "at least 0 and below 0.5"]),
        ({"nll_loss_coef": -1.0}, ["--nll_loss_coef is -1.0", "at least 0"]),
    ],
)
def test_numbers_of_dpo(changed: dict[str, Any], words: list[str]) -> None:
    refused(build(DPOConfig, PAIRS | changed), words)


def test_where_the_reference_of_dpo_is() -> None:
    assert reference_source(build(DPOConfig, PAIRS)) == "model"
    assert reference_source(build(DPOConfig, PAIRS | {"ref_pretrain": "before"})) == "before"


GOOD_OTHERS: list[tuple[type[Command], dict[str, Any]]] = [
    (KTOConfig, {}),
    (KTOConfig, {"output_key": None, "apply_chat_template": True}),
    (KTOConfig, {"output_key": "answer", "apply_chat_template": True}),
    (KTOConfig, {"micro_train_batch_size": 1, "train_batch_size": 2}),
    (KTOConfig, {"desirable_loss_weight": 0.0, "undesirable_loss_weight": 0.0}),
    (KDConfig, {}),
    (KDConfig, {"pretrain_mode": True}),
    (KDConfig, {"pretrain_mode": True, "output_key": None}),
    (KDConfig, {"apply_chat_template": True}),
    (KDConfig, {"apply_chat_template": True, "output_key": None}),
    (KDConfig, {"kd_coef": 0.0}),
    (PRMConfig, {}),
    (PRMConfig, {"reward_tokens": ("+", "-")}),
    (PRMConfig, {"reward_tokens": ("good", "neutral", "bad")}),
]


@pytest.mark.parametrize(("command", "changed"), GOOD_OTHERS)
def test_good_kto_kd_prm(command: Any, changed: dict[str, Any]) -> None:
    check(build(command, COMMANDS[command] | changed))
    check(build(command, COMMANDS[command] | changed | {"dataset": "a,b", "dataset_probs": "0.3,0.7"}))
    check(build(command, COMMANDS[command] | changed | {"eval_dataset": "c", "eval_steps": 5}))


BAD_OTHERS: list[tuple[type[Command], dict[str, Any], list[str]]] = [
    (KTOConfig, {"output_key": None}, ["--output_key", "--apply_chat_template"]),
    (KTOConfig, {"micro_train_batch_size": 1, "train_batch_size": 1}, ["--train_batch_size 1", "at least 2"]),
    (KTOConfig, {"beta": 0.0}, ["--beta is 0.0", "above 0"]),
    (KTOConfig, {"desirable_loss_weight": -1.0}, ["--desirable_loss_weight is -1.0", "at least 0"]),
    (KTOConfig, {"input_template": "Q:"}, ["--input_template 'Q:'", "{}"]),
    (KDConfig, {"kd_coef": 1.5}, ["--kd_coef is 1.5", "between 0 and 1"]),
    (KDConfig, {"output_key": None}, ["--output_key", "--apply_chat_template", "--pretrain_mode"]),
    (KDConfig, {"pretrain_mode": True, "output_key": "answer"}, ["--pretrain_mode", "leave out --output_key"]),
    (KDConfig, {"pretrain_mode": True, "apply_chat_template": True}, ["leave out --apply_chat_template"]),
    (PRMConfig, {"reward_tokens": ()}, ["--reward_tokens", "two or more"]),
    (PRMConfig, {"reward_tokens": ("+",)}, ["--reward_tokens + must", "two or more"]),
    (PRMConfig, {"reward_tokens": ("+", "-", "+")}, ["--reward_tokens + - +", "different"]),
]


@pytest.mark.parametrize(("command", "changed", "words"), BAD_OTHERS)
def test_bad_kto_kd_prm(command: Any, changed: dict[str, Any], words: list[str]) -> None:
    refused(build(command, COMMANDS[command] | changed), words)


@pytest.mark.parametrize("command", [KTOConfig, KDConfig, PRMConfig])
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train_batch_size": 9, "micro_train_batch_size": 2}, ["--train_batch_size 9", "--micro_train_batch_size 2"]),
        ({"dataset": "a,b", "dataset_probs": "0.5,0.6"}, ["--dataset_probs", "sum to 1"]),
        ({"lr_scheduler": "cosin"}, ["--lr_scheduler 'cosin'"]),
        ({"eval_steps": 5}, ["--eval_steps", "--eval_dataset"]),
    ],
)
def test_bad_kto_kd_prm_alike(command: Any, changed: dict[str, Any], words: list[str]) -> None:
    refused(build(command, COMMANDS[command] | changed), words)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"best_of_n": 4, "temperature": 0.7, "iter": 0, "rollout_batch_size": 8, "zero_stage": 1},
        {"greedy_sampling": True, "repetition_penalty": 1.2, "enable_csft": True, "csft_prompt": " <rm_score>: 2.00"},
        {"eval_task": "generate_vllm", "best_of_n": 4, "tp_size": 2, "max_num_seqs": 8, "enable_prefix_caching": True},
        {"eval_task": "rm", "zero_stage": 3, "value_head_prefix": "value_head"},
        {"eval_task": "rm", "post_processor": "rs"},
        {"eval_task": "rm", "post_processor": "iter_dpo"},
        {"eval_task": "rm", "post_processor": "csft", "normalize_reward": True, "reward_template": "{reward}: {input}"},
    ],
)
def test_good_batch_inference(changed: dict[str, Any]) -> None:
    check(build(BatchInferenceConfig, BATCH | changed))


TASK_NAMES = ["--eval_task", "generate, generate_vllm or rm"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"eval_task": None}, [*TASK_NAMES, "must be given"]),
        ({"eval_task": "generate_vlm"}, [*TASK_NAMES, "'generate_vlm'"]),
        ({"post_processor": "rs"}, ["--eval_task generate", "--post_processor"]),
        ({"tp_size": 2}, ["--eval_task generate", "--tp_size"]),
        ({"eval_task": "generate_vllm", "zero_stage": 3}, ["--eval_task generate_vllm", "--zero_stage"]),
        ({"eval_task": "rm", "best_of_n": 4, "iter": 1}, ["--eval_task rm", "--best_of_n, --iter"]),
        ({"eval_task": "rm", "enable_csft": True}, ["--eval_task rm", "--enable_csft"]),
        ({"eval_task": "rm", "post_processor": "dpo"}, ["--post_processor 'dpo'", "rs, csft or iter_dpo"]),
        ({"eval_task": "rm", "normalize_reward": True}, ["--normalize_reward", "csft"]),
        (
            {"eval_task": "rm", "post_processor": "rs", "reward_template": "{input}{reward}"},
            ["--reward_template", "csft"],
        ),
        (
            {"eval_task": "rm", "post_processor": "csft", "reward_template": "{input} {}"},
            ["--reward_template", "{reward}"],
        ),
        ({"csft_prompt": "<rm_score>: 1.00"}, ["--csft_prompt", "--enable_csft"]),
        ({"greedy_sampling": True, "best_of_n": 2}, ["--greedy_sampling", "--best_of_n"]),
        ({"dataset": "a,b", "dataset_probs": "0.5,0.6"}, ["--dataset_probs", "sum to 1"]),
        ({"iter": -1}, ["--iter is -1", "at least 0"]),
    ],
)
def test_bad_batch_inference(changed: dict[str, Any], words: list[str]) -> None:
    refused(build(BatchInferenceConfig, BATCH | changed), words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (PPO | {"input_template": "Q:"}, ["--input_template 'Q:'", "{}"]),
        (
            PPO | {"apply_chat_template": True, "input_template": "Q: {}"},
            ["--apply_chat_template", "--input_template"],
        ),
        (
            PPO | {"train_batch_size": 6, "rollout_batch_size": 12, "use_dynamic_batch": True},
            ["--train_batch_size 6", "4 workers", "--train_batch_size 8"],
        ),
        (PPO | {"rollout_max_tokens_per_gpu": 6}, ["--rollout_max_tokens_per_gpu", "--use_dynamic_batch"]),
        (PPO | {"train_batch_size": 6}, ["--train_batch_size 6", "--micro_train_batch_size 4"]),
        (PPO | {"train_batch_size": 8}, ["--train_batch_size 8", "4 × 4 workers", "--actor_num_gpus_per_node"]),
        (
            PPO | {"critic_num_gpus_per_node": 64},
            ["--train_batch_size 128", "64 workers", "--critic_num_gpus_per_node"],
        ),
        (PPO | {"reward_pretrain": None}, ["--reward_pretrain", "--remote_rm_url"]),
        (PPO | {"remote_rm_url": "reward.py"}, ["--reward_pretrain", "--remote_rm_url", "leave one out"]),
        (FILE | {"remote_rm_url": "reward.txt"}, ["--remote_rm_url 'reward.txt'", ".py"]),
        (FILE | {"agent_func_path": "agent.py"}, ["--agent_func_path", "--remote_rm_url", "leave one out"]),
        (PPO | {"agent_func_path": "agent.py"}, ["--agent_func_path", "--reward_pretrain", "leave one out"]),
        (AGENT | {"agent_func_path": "agent"}, ["--agent_func_path agent must be a .py file"]),
        (AGENT | {"overlong_buffer_len": 8}, ["--overlong_buffer_len", "--agent_func_path"]),
        (FILE | {"normalize_reward": True}, ["--normalize_reward", "--reward_pretrain"]),
        (PPO | {"rollout_batch_size": 100}, ["--rollout_batch_size", "100 samples", "--train_batch_size 128"]),
        (PPO | {"prompt_data_probs": "0.2,0.8"}, ["--prompt_data_probs", "--prompt_data"]),
        (PPO | GROUPS | {"n_samples_per_prompt": 1}, ["--advantage_estimator rloo", "--n_samples_per_prompt"]),
        (PPO | GROUPS | {"gamma": 0.9}, ["--advantage_estimator rloo", "--gamma"]),
        (PPO | GROUPS | {"no_advantage_std_norm": True}, ["--advantage_estimator rloo", "--no_advantage_std_norm"]),
        (PPO | {"advantage_estimator": "rlo"}, ["--advantage_estimator", "'rlo'", "rloo"]),
        (PPO | {"advantage_estimator": "gone.py:mine"}, ["--advantage_estimator", "'gone.py'"]),
        (PPO | GROUPS | {"critic_pretrain": "critic"}, ["--advantage_estimator rloo", "--critic_pretrain"]),
        (PPO | GROUPS | {"save_value_network": True}, ["--advantage_estimator rloo", "--save_value_network"]),
        (PPO | {"policy_loss_type": "gsp"}, ["--policy_loss_type", "'gsp'", "gspo"]),
        (PPO | {"policy_loss_type": "cispo", "dual_clip": 3.0}, ["--dual_clip", "--policy_loss_type cispo"]),
        (PPO | {"vllm_is_correction_type": "icepop"}, ["--vllm_is_correction_type", "--enable_vllm_is_correction"]),
        (
            PPO | {"enable_vllm_is_correction": True, "vllm_is_correction_type": "ice"},
            ["--vllm_is_correction_type", "'ice'", "icepop"],
        ),
        (PPO | {"overlong_penalty_factor": 2.0}, ["--overlong_penalty_factor", "--overlong_buffer_len"]),
        (PPO | {"overlong_buffer_len": 2000}, ["--overlong_buffer_len 2000", "--generate_max_len 1024"]),
        (PPO | {"init_kl_coef": 0.0, "kl_target": 0.1}, ["--kl_target", "--init_kl_coef"]),
        (PPO | {"init_kl_coef": 0.0, "use_kl_loss": True}, ["--use_kl_loss", "--init_kl_coef"]),
        (PPO | {"vllm_num_engines": None}, ["--vllm_num_engines", "--local"]),
        (
            LOCAL | {"vllm_num_engines": 1, "colocate_actor_ref": True, "adam_offload": True},
            ["--local", "--vllm_num_engines", "--colocate_actor_ref", "--adam_offload"],
        ),
        (
            PPO | {"rollout_batch_size": 128, "reward_num_gpus_per_node": 3},
            ["128 samples", "3 workers", "--reward_num_nodes × --reward_num_gpus_per_node", "multiple of 3"],
        ),
        (
            PPO | RING | {"reward_num_gpus_per_node": 3},
            ["--ring_attn_size 2 does not divide the 3 workers of --reward_"],
        ),
        (
            PPO | RING | {"critic_num_gpus_per_node": 128},
            ["--train_batch_size 128", "64 workers", "--critic_num_gpus_per_node / --ring_attn_size"],
        ),
        (
            PPO | RING | {"rollout_batch_size": 128, "reward_num_gpus_per_node": 6},
            ["128 samples", "3 workers", "--reward_num_gpus_per_node / --ring_attn_size", "multiple of 3"],
        ),
        (LOCAL | RING, ["--local", "--ring_attn_size"]),
        (PPO | {"ref_num_nodes": 3}, ["1024 samples", "12 workers", "--ref_num_nodes"]),
        (PPO | SHARED | {"ref_num_gpus_per_node": 2}, ["--colocate_all_models", "actor, critic, ref, reward", "1 × 2"]),
        (PPO | {"colocate_actor_ref": True, "ref_num_gpus_per_node": 2}, ["--colocate_actor_ref", "1 × 4, 1 × 2"]),
        (
            PPO | {"colocate_critic_reward": True, "reward_num_gpus_per_node": 2, "reward_num_nodes": 2},
            ["--colocate_critic_reward", "1 × 4, 2 × 2"],
        ),
        (
            PPO | SHARED | {"vllm_num_engines": 3},
            ["--colocate_all_models", "--vllm_num_engines 3", "--vllm_tensor_parallel_size 1", "4"],
        ),
        (
            FILE | {"n_samples_per_prompt": 4, "dynamic_filtering_reward_range": (0.1, 0.9)},
            ["--dynamic_filtering_reward_range", "--dynamic_filtering."],
        ),
        (FILE | GROUPS | {"freezing_actor_steps": 2}, ["--freezing_actor_steps", "--advantage_estimator rloo"]),
        (PPO | {"ema_beta": 0.5}, ["--ema_beta", "--enable_ema"]),
        (FILE | {"dynamic_filtering": True}, ["--dynamic_filtering", "--n_samples_per_prompt"]),
        (PPO | {"dynamic_filtering": True, "n_samples_per_prompt": 4}, ["--dynamic_filtering", "--remote_rm_url"]),
        (
            FILE | GROUPS | {"dynamic_filtering": True, "async_train": True, "async_queue_size": 2},
            ["--async_queue_size 2", "--dynamic_filtering", "choose --async_queue_size 1"],
        ),
        (
            PPO | {"vllm_num_engines": 0, "enforce_eager": True, "vllm_enable_sleep": True},
            ["--vllm_num_engines 0", "leave out --enforce_eager, --vllm_enable_sleep."],
        ),
        (PPO | {"vllm_num_engines": 0, "async_train": True}, ["--async_train", "--vllm_num_engines 0"]),
        (PPO | {"vllm_enable_sleep": True}, ["--vllm_enable_sleep", "--colocate_all_models"]),
        (PPO | {"lora_rank": 8, "ref_num_nodes": 2}, ["--lora_rank", "--ref_num_nodes, --ref_num_gpus_per_node."]),
        (
            PPO | {"lora_rank": 8, "ref_num_gpus_per_node": 8, "colocate_actor_ref": True},
            ["--lora_rank", "leave out --colocate_actor_ref."],
        ),
        (FILE | {"init_kl_coef": 0.0, "ref_reward_offload": True}, ["--ref_reward_offload", "reward model"]),
        (
            FILE | {"lora_rank": 8, "ref_num_gpus_per_node": 8, "ref_reward_offload": True},
            ["--ref_reward_offload", "neither a reference model of its own"],
        ),
        (PPO | {"deepspeed_enable_sleep": True}, ["--deepspeed_enable_sleep", "--colocate_actor_ref"]),
        (PPO | {"async_queue_size": 2}, ["--async_queue_size", "--async_train"]),
        (PPO | {"max_staleness": 2}, ["--max_staleness", "--async_train"]),
        (PPO | {"partial_rollout": True}, ["--partial_rollout", "--async_train"]),
        (PPO | {"stop_strings": ("User:", "")}, ["--stop_strings holds an empty text"]),
        (PPO | {"stop_strings": ("\\nUser:",)}, ["--stop_strings", "backslash and an n", "$'"]),
        (PPO | {"async_train": True, "max_staleness": 1}, ["--max_staleness 1 would never act", "leave it out"]),
        (LOCAL | {"async_train": True, "async_queue_size": -1}, ["--async_queue_size is -1", "at least 0"]),
        (
            LOCAL | {"async_train": True, "async_queue_size": 3, "max_staleness": 2},
            ["--async_queue_size 3", "--max_staleness 2", "choose --async_queue_size 2", "--partial_rollout"],
        ),
        (PPO | SHARED | {"async_train": True}, ["--async_train", "--colocate_all_models", "leave one out"]),
        (PPO | {"async_train": True, "vllm_enable_sleep": True}, ["--async_train", "--vllm_enable_sleep"]),
        (LOCAL | {"partial_rollout": True, "async_train": True}, ["--partial_rollout", "--local", "leave one out"]),
        (
            PPO | {"partial_rollout": True, "async_train": True, "async_queue_size": 0},
            ["--partial_rollout", "--async_queue_size 0", "leave one out"],
        ),
    ],
)
def test_bad_ppo(flags: dict[str, Any], words: list[str]) -> None:
    refused(build(PPOConfig, flags), words)


@pytest.mark.parametrize("name", ["rloo", "reinforce_baseline", "group_norm", "dr_grpo"])
def test_every_group_estimator_needs_a_group(name: str) -> None:
    refused(build(PPOConfig, PPO | {"advantage_estimator": name}), [name, "--n_samples_per_prompt"])
    check(build(PPOConfig, PPO | {"advantage_estimator": name, "n_samples_per_prompt": 2}))


def test_an_estimator_of_your_own_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from openrlhf.algorithms.advantages import Estimator\n"
        "def plain(inputs): ...\n"
        "grouped = Estimator(plain, needs_critic=True, needs_groups=True)\n"
    )
    plain = build(PPOConfig, PPO | {"advantage_estimator": f"{path}:plain"})
    check(plain)
    assert critic_source(plain) is None
    grouped = build(PPOConfig, PPO | {"advantage_estimator": f"{path}:grouped"})
    refused(grouped, ["--n_samples_per_prompt"])
    assert critic_source(grouped) is not None


# One value inside and one outside of every range.
EDGES = {
    "at least -1": (-1, -2),
    "at least 1": (1, 0),
    "at least 0": (0, -1),
    "above 0": (1e-9, 0.0),
    "above 0 and at most 1": (1.0, 0.0),
    "between 0 and 1": (1.0, 1.1),
    "at least 0 and below 0.5": (0.0, 0.5),
    "above 1": (1.1, 1.0),
    "-1 or at least 1": (-1, 0),
    "between 0 and 65535": (0, 65536),
    "0, 1, 2 or 3": (3, 4),
    "two numbers of at least 0 and below 1": ((0.0, 0.99), (0.9, 1.0)),
    "finite numbers": ((0.5, -1.0, 2.0), (0.5, float("inf"))),
    "two numbers above 0": ((0.2, 0.3), (0.0, 0.3)),
    "two numbers of at least 0, the lower one first": ((0.0, 1.0), (-0.5, 1.0)),
    "two numbers, the lower one first": ((-1.0, 1.0), (1.0, -1.0)),
}
RANGED = [(name, allowed.says) for allowed in RANGES for name in allowed.flags]


@pytest.mark.parametrize(("name", "says"), RANGED, ids=[name for name, _ in RANGED])
def test_ranges(name: str, says: str) -> None:
    inside, outside = EDGES[says]
    command: Any = next(command for command in COMMANDS if name in types(command))
    check_ranges(build(command, COMMANDS[command] | {name: inside}))
    with pytest.raises(ValueError, match=f"--{name} is .*{says}"):
        check_ranges(build(command, COMMANDS[command] | {name: outside}))


def test_nan_is_in_no_range() -> None:
    for name in ("l2", "temperature", "top_p", "gamma"):
        refused(build(PPOConfig, PPO | {name: float("nan")}), [f"--{name} is nan"])


def test_every_range_is_of_a_flag_and_every_number_has_one() -> None:
    ranged = [name for name, _ in RANGED]
    known = {name: kind for command in COMMANDS for name, kind in types(command).items()}
    assert len(ranged) == len(set(ranged))
    assert set(ranged) <= known.keys()
    numbers = {name for name, kind in known.items() if kind in (int, float)}
    free = {"local_rank", "entropy_loss_coef", "ptx_coef"}
    assert numbers - set(ranged) == free


@pytest.mark.parametrize(
    "address",
    [
        *("reward.py", "/a/b/reward.py", "http://host", "https://host/get_reward", "http://10.0.0.1:5000/get_reward"),
        *("http://[::1]:5000/", "http://a:1/x,http://b:2/y"),
    ],
)
def test_reward_addresses(address: str) -> None:
    check(build(PPOConfig, FILE | {"remote_rm_url": address, "reward_timeout": 5.0, "on_reward_failure": "drop"}))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        *(
            (address, ["--remote_rm_url", "http:// or https://"])
            for address in (
                *(
                    "reward",
                    "a.py,b.py",
                    "a.py,http://host,b.py",
                    "a.py,",
                    "host:5000",
                    "ftp://host/x",
                    "file:///etc/passwd",
                    "http://",
                ),
                *("http:///x", "http://host:port/", "http://host:99999/", "http://host:0/", "http://[::1", "http://a,"),
                *("gopher://host/x", "http://a/x.py,b", "data://x", ",", "javascript:alert(1)", "file:///reward.py"),
            )
        ),
        ("http://user:password@host/", ["--remote_rm_url", "user name", "OPENRLHF_RM_TOKEN"]),
    ],
)
def test_bad_reward_addresses(address: str, words: list[str]) -> None:
    refused(build(PPOConfig, FILE | {"remote_rm_url": address}), words)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"remote_rm_url": "reward.py"}, ["--reward_pretrain", "--remote_rm_url", "--reward_weights"]),
        ({"reward_weights": (1.0, 2.0)}, ["--reward_weights has 2 numbers for 1 rewards"]),
        ({"reward_pretrain": "a,b", "reward_weights": ()}, ["--reward_weights has 0 numbers for 2 rewards"]),
        (
            {"reward_pretrain": "a,b", "remote_rm_url": "reward.py", "reward_weights": (1.0, 2.0)},
            ["--reward_weights has 2 numbers for 3 rewards"],
        ),
        ({"reward_pretrain": "a,,b"}, ["--reward_pretrain", "comma"]),
        (
            {"reward_pretrain": None, "remote_rm_url": "reward.py,http://host"},
            ["--remote_rm_url names a file and servers", "--reward_weights", "first the file"],
        ),
        (
            {"remote_rm_url": "reward.py,http://a,http://b", "reward_weights": (1.0, 2.0)},
            ["--reward_weights has 2 numbers for 3 rewards", "two for a file and servers"],
        ),
    ],
)
def test_bad_sums_of_rewards(changed: dict[str, Any], words: list[str]) -> None:
    refused(build(PPOConfig, PPO | changed), words)


def test_weights_of_models_a_file_and_servers() -> None:
    given = {"reward_pretrain": "a,b", "remote_rm_url": "http://x,reward.py,http://y", "reward_weights": (1, 2, 3, 4)}
    config = build(PPOConfig, PPO | given)
    check(config)
    assert reward_sources(config.reward) == ("reward.py", ["http://x", "http://y"])
    assert reward_weights(config) == [1, 2, 1]  # 3 and 4 make one sum of the file and the servers
    alone = build(PPOConfig, PPO | {"reward_pretrain": "a", "remote_rm_url": "r.py", "reward_weights": (1, 2)})
    assert reward_weights(alone) == [1, 2]
    assert reward_weights(build(PPOConfig, PPO | {"reward_pretrain": "a,b"})) == [1, 1]


def test_the_critic_starts_from_the_first_reward_model() -> None:
    source = critic_source(build(PPOConfig, PPO | {"reward_pretrain": "a,b"}))
    assert source == CriticSource("a", new_head=False)


def test_an_agent_gives_the_rewards() -> None:
    check(build(PPOConfig, AGENT | {"reward_timeout": 5.0, "on_reward_failure": "drop"}))


@pytest.mark.parametrize("flag", [{"reward_timeout": 5.0}, {"on_reward_failure": "drop"}])
def test_flags_of_reward_functions_need_one(flag: dict[str, Any]) -> None:
    refused(build(PPOConfig, PPO | flag), [*(f"--{name}" for name in flag), "--remote_rm_url"])


NOT_BUILT_EXAMPLES = {bool: True, int: 2, float: 0.5, str: "other", tuple[str, ...]: ("q_proj",)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_that_is_not_built_is_refused(command: Any) -> None:
    for name in not_built.NOT_BUILT:
        if name in types(command):
            refused(
                build(command, COMMANDS[command] | {name: NOT_BUILT_EXAMPLES[types(command)[name]]}), [f"--{name} "]
            )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (PPO | {"max_len": 99}, ["--max_len is not built yet", "--prompt_max_len and --generate_max_len"]),
        (PPO | {"ptx_coef": 0.1}, ["--ptx_coef never had an effect"]),
        (PPO | {"perf": True}, ["--perf never had an effect"]),
    ],
)
def test_what_is_not_built_says_so(flags: dict[str, Any], words: list[str]) -> None:
    refused(build(PPOConfig, flags), words)


def test_defaults_of_what_is_not_built_pass() -> None:
    read(
        PPOConfig,
        [
            *["--pretrain", "model", "--prompt_data", "p", "--remote_rm_url", "reward.py", "--local"],
            *["--ptx_coef", "0.05", "--save_steps", "-1", "--lora_rank", "0", "--perf", "false"],
        ],
    )


def test_refused_flags_and_sentences() -> None:
    known = {name for command in COMMANDS for name in types(command)}
    named = [pair for table in not_built.NOT_BUILT_IN.values() for pair in table.items()]
    for name, sentence in [*not_built.NOT_BUILT.items(), *named]:
        assert name in known
        assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        (SFTConfig, {"lora_alpha": 8}, ["--lora_alpha", "--lora_rank"]),
        (RMConfig, {"lora_dropout": 0.1}, ["--lora_dropout", "--lora_rank"]),
        (PPOConfig, {"target_modules": ("q_proj",)}, ["--target_modules", "--lora_rank"]),
        (DPOConfig, {"lora_rank": 4, "ref_offload": True}, ["--ref_offload", "leave --ref_offload out"]),
        (KTOConfig, {"lora_rank": 4, "ref_offload": True}, ["--ref_offload", "leave --ref_offload out"]),
        (SFTConfig, {"load_in_4bit": True}, ["--load_in_4bit", "--lora_rank"]),
        (
            KDConfig,
            {"aux_loss_coef": 0.1, "gradient_checkpointing": True, "gradient_checkpointing_use_reentrant": True},
            ["--aux_loss_coef", "--gradient_checkpointing_use_reentrant"],
        ),
        (RMConfig, {"load_in_4bit": True, "lora_rank": 4, "zero_stage": 3}, ["--load_in_4bit", "--zero_stage 2"]),
    ],
)
def test_what_adapters_exclude(command: Any, flags: dict[str, Any], words: list[str]) -> None:
    refused(build(command, COMMANDS[command] | flags), words)


@pytest.mark.parametrize(("flag", "extra"), [("use_liger_kernel", "liger"), ("load_in_4bit", "qlora")])
@pytest.mark.parametrize("command", get_args(TrainCommand))
def test_a_missing_package_is_named_with_its_extra(
    command: Any, flag: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    refused(build(command, COMMANDS[command] | {flag: True}), [f"--{flag}", f"pip install 'openrlhf[{extra}]'"])


def test_a_reference_of_its_own_may_wait_on_the_host() -> None:
    check(build(DPOConfig, PAIRS | {"lora_rank": 4, "ref_offload": True, "ref_pretrain": "before"}))
    check(build(DPOConfig, PAIRS | {"ref_offload": True}))


@pytest.mark.parametrize("extra", [{"lora_rank": 8}, {"load_in_4bit": True}])
def test_tensor_parallelism_cuts_plain_layers_only(extra: dict[str, Any]) -> None:
    """An adapter would be thrown away with the layer that it sits on."""
    tensor_parallel(build(SFTConfig, SFT | extra))
    with pytest.raises(ValueError, match=f"--ds_tensor_parallel_size 2.*--{next(iter(extra))}"):
        tensor_parallel(build(SFTConfig, SFT | extra | {"ds_tensor_parallel_size": 2}))


def test_a_ring() -> None:
    ring(build(SFTConfig, SFT | {"ring_attn_size": 2, "ring_head_stride": 2, "packing_samples": True}))
    with pytest.raises(ValueError, match="--ring_attn_size.*--packing_samples"):
        ring(build(SFTConfig, SFT | {"ring_attn_size": 2}))
    with pytest.raises(ValueError, match="--ring_head_stride.*--ring_attn_size above 1"):
        ring(build(SFTConfig, SFT | {"ring_head_stride": 2, "packing_samples": True}))
    both = {"ring_attn_size": 2, "packing_samples": True, "ds_tensor_parallel_size": 2}
    with pytest.raises(ValueError, match="--ring_attn_size.*--ds_tensor_parallel_size"):
        ring(build(SFTConfig, SFT | both))


def test_workers_of_a_launcher() -> None:
    train = build(SFTConfig, SFT).train  # 128 samples, 8 at a time
    check_workers(train, 16, "")
    with pytest.raises(ValueError, match="--train_batch_size 128.* 8 × 3 workers: .*--train_batch_size 144"):
        check_workers(train, 3, "")


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        (PPO, CriticSource("rm", new_head=False)),
        (FILE, CriticSource("model", new_head=True)),
        (PPO | {"critic_pretrain": "critic"}, CriticSource("critic", new_head=False)),
        (PPO | {"critic_pretrain": "model"}, CriticSource("model", new_head=True)),
        (PPO | GROUPS, None),
        (PPO | {"advantage_estimator": "reinforce"}, None),
    ],
)
def test_where_the_critic_starts(flags: dict[str, Any], source: CriticSource | None) -> None:
    config = build(PPOConfig, flags)
    assert critic_source(config) == source
    assert config.reward.critic_pretrain == flags.get("critic_pretrain")


def test_roles_with_a_model() -> None:
    assert list(role_sizes(build(PPOConfig, PPO))) == ["actor", "critic", "ref", "reward"]
    assert list(role_sizes(build(PPOConfig, FILE | GROUPS | {"init_kl_coef": 0.0}))) == ["actor"]
    assert list(role_sizes(build(PPOConfig, FILE | GROUPS | {"lora_rank": 4}))) == ["actor"]  # its start is in it
    sizes = role_sizes(build(PPOConfig, PPO | {"actor_num_nodes": 3}))
    assert (sizes["actor"].workers, sizes["ref"].workers) == (12, 4)


def test_flags_that_only_deepspeed_can_serve() -> None:
    assert needs_deepspeed(build(SFTConfig, SFT | {"zero_stage": 3}).deepspeed) == []
    changed = build(SFTConfig, SFT | {"adam_offload": True, "grad_accum_dtype": "fp32"}).deepspeed
    assert needs_deepspeed(changed) == ["--adam_offload", "--grad_accum_dtype"]


def test_check_changes_nothing() -> None:
    config = build(PPOConfig, PPO | GROUPS)
    before = dict(flat(config))
    check(config)
    assert flat(config) == before


def refused(config: Command, words: list[str]) -> None:
    """One sentence that has all these words."""
    with pytest.raises(ValueError, match="--") as error:
        check(config)
    sentence = str(error.value)
    assert [word for word in words if word not in sentence] == [], sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
