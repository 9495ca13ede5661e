"""PPO by its command on Ray + vLLM + DeepSpeed: critic, reward models, bfloat16, all on shared devices; a reward
function that ends its process at one of the prompts; and adapters beside 4-bit weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from openrlhf.cli.train_ppo_ray import main
from openrlhf.config.groups import ModelConfig
from openrlhf.models.load import load_score_model, load_tokenizer, save_model

pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
pytestmark = pytest.mark.cluster


@pytest.mark.timeout(400)
def test_ppo_with_reward_models_in_bf16_on_shared_devices(tiny_folder: Path, tmp_path: Path) -> None:
    config = ModelConfig(pretrain=str(tiny_folder))
    reward = load_score_model(str(tiny_folder), config, "score", new_head=True)
    reward.set_statistics(0.0, 0.5)
    save_model(reward, tmp_path / "reward", load_tokenizer(str(tiny_folder), config))
    rows = [{"input": f"What is {i} + {i}?"} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "import os\ndef reward_func(queries, prompts, labels):\n"
        "    if any('4 + 4' in p for p in prompts):\n        os._exit(3)\n    return [0.25] * len(queries)\n"
    )
    sizes = " ".join(f"--{role}_num_gpus_per_node 1" for role in ("actor", "critic", "ref", "reward"))
    out = tmp_path / "out"
    main(
        f"--pretrain {tiny_folder} --reward_pretrain {tmp_path}/reward,{tmp_path}/reward --normalize_reward {sizes} "
        f"--remote_rm_url {tmp_path}/reward.py --reward_weights 1 0.5 2 --on_reward_failure drop "
        "--colocate_all_models --vllm_num_engines 1 --vllm_enable_sleep --deepspeed_enable_sleep --zero_stage 3 "
        "--bf16 --packing_samples --gradient_checkpointing --adam_offload --save_value_network "
        f"--prompt_data {tmp_path}/prompts.jsonl --num_episodes 2 --rollout_batch_size 4 --n_samples_per_prompt 2 "
        "--train_batch_size 4 --micro_train_batch_size 2 --prompt_max_len 32 --generate_max_len 12 "
        f"--eval_dataset {tmp_path}/prompts.jsonl --eval_steps 2 --eval_temperature 0 --eval_n_samples_per_prompt 2 "
        f"--enable_ema --ema_beta 0.5 --best_metric_key eval_default_pass2 --ckpt_path {tmp_path}/ckpt "
        f"--use_tensorboard {tmp_path}/tb --save_path {out}".split()
    )
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    before_training = steps.pop(0)
    assert before_training.keys() >= {"eval_default_pass1", "eval_default_pass2"}
    assert before_training["step"] == 0
    assert ["eval_default_pass2" in step for step in steps] == [False, True, False]
    AutoModelForCausalLM.from_pretrained(tmp_path / "ckpt" / "best")
    assert len(steps) == 3  # 12 prompts, 4 at a time: a batch reaches into the second episode
    assert [step["weight_version"] for step in steps] == [0, 1, 2]
    for step in steps:
        assert all(math.isfinite(value) for value in step.values())
        assert step["engine_log_prob_diff"] < 0.1
        assert step["critic_loss"] > 0
        assert step["reward/model_1"] == step["reward/model_2"] != 0
        assert step["reward/function"] == 0.25
        assert step["reward"] == pytest.approx(1.5 * step["reward/model_1"] + 0.5, abs=1e-5)
        for phase in ("rollout", "reward", "log_probs", "update", "sync"):  # where workers work
            assert 0 < step[f"busy/{phase}"] <= step[f"time/{phase}"]
        assert "busy/advantages" not in step
    assert sum(step["reward/invalid"] for step in steps) == pytest.approx(2 / 4)  # one prompt of six, in both episodes
    assert list((tmp_path / "tb").rglob("events*"))
    before = AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].bfloat16(), after[name].bfloat16()) for name in before)
    critic = AutoModelForSequenceClassification.from_pretrained(out.with_name("out_critic"), num_labels=1)
    assert critic.score.weight.shape == (1, 64)


@pytest.mark.timeout(400)
def test_qlora_without_a_critic_samples_from_the_weights_that_learn(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    rows = [{"input": f"What is {i} + {i}?"} for i in range(4)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [float(len(query) % 5) for query in queries]\n"
    )
    out = tmp_path / "out"
    main(
        f"--pretrain {tiny_folder} --remote_rm_url {tmp_path}/reward.py --advantage_estimator group_norm "
        "--load_in_4bit --lora_rank 4 --lora_alpha 16 --actor_learning_rate 1e-2 --lr_warmup_ratio 0 --zero_stage 2 "
        "--actor_num_gpus_per_node 2 --vllm_num_engines 1 --init_kl_coef 0.01 --use_kl_loss --kl_estimator k3 "
        f"--prompt_data {tmp_path}/prompts.jsonl --rollout_batch_size 2 --n_samples_per_prompt 4 "
        f"--train_batch_size 8 --micro_train_batch_size 2 --prompt_max_len 32 --generate_max_len 12 --save_path {out}"
        .split()
    )  # fmt: skip
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [step["weight_version"] for step in steps] == [0, 1]
    for step in steps:  # before the first update too: 4-bit weights are not those in the folder
        assert step["engine_log_prob_diff"] < 1e-4
    assert abs(steps[0]["kl"]) < 1e-6  # the reference is the model without its adapter, which does nothing yet
    assert steps[1]["kl"] > 1e-5
    assert {path.name for path in out.glob("*.safetensors")} == {"adapter_model.safetensors"}
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    after = PeftModel.from_pretrained(base, out).merge_and_unload().state_dict()
    assert max(float((after[name] - before[name]).abs().max()) for name in before) > 1e-3


@pytest.mark.timeout(400)
def test_without_engines_the_actors_workers_sample(tiny_folder: Path, tmp_path: Path) -> None:
    """Two of them, with an adapter, five prompts: one has a part that is larger than the other's."""
    rows = [{"input": f"What is {i} + {i}?", "label": i} for i in range(5)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return {'rewards': [float(len(q) % 5) for q in queries], "
        "'extra_logs': {'prompts': [2.0 ** int(label) for label in labels]}}\n"
    )
    out = tmp_path / "out"
    main(
        f"--pretrain {tiny_folder} --remote_rm_url {tmp_path}/reward.py --advantage_estimator group_norm "
        "--lora_rank 4 --actor_learning_rate 1e-2 --lr_warmup_ratio 0 --zero_stage 2 --deepspeed_enable_sleep "
        "--actor_num_gpus_per_node 2 --colocate_all_models --vllm_num_engines 0 --init_kl_coef 0.01 --use_kl_loss "
        f"--kl_estimator k3 --prompt_data {tmp_path}/prompts.jsonl --label_key label --num_episodes 2 "
        "--rollout_batch_size 5 --n_samples_per_prompt 2 --train_batch_size 10 --micro_train_batch_size 5 "
        f"--prompt_max_len 32 --generate_max_len 12 --eval_dataset {tmp_path}/prompts.jsonl "
        f"--eval_n_samples_per_prompt 1 --save_path {out}".split()
    )
    _, *steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [step["weight_version"] for step in steps] == [0, 1]
    for step in steps:
        assert step["reward/prompts"] == (2**5 - 1) / 5  # each prompt once
        assert step["engine_log_prob_diff"] < 1e-4
        assert step["busy/rollout"] > 0
        assert "eval_default_pass1" in step
    assert steps[1]["kl"] > 1e-5
