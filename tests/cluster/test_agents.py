"""Conversations by the command on Ray + vLLM: every turn is sampled by the engine from what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openrlhf.cli.train_ppo_ray import main
from tests.recipes.helpers import column, metrics

pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
pytestmark = pytest.mark.cluster

PATIENT = """
AGENT_CONTRACT = 1

class AgentInstance:
    def __init__(self):
        self.turns = 0

    async def reset(self, states):
        return {"observation": states["observation"]}

    async def step(self, states):
        self.turns += 1
        if states["label"] == "2" and self.turns == 2:
            raise ConnectionError("the game is gone")
        return {
            "rewards": float("e" in states["action_text"]), "environment_feedback": "\\nand then?\\n",
            "done": self.turns == 3, "sampling_params": {"max_new_tokens": 3},
        }
"""


@pytest.mark.timeout(400)
def test_conversations_on_two_engines(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(PATIENT)
    rows = [{"input": f"Tell me {i}", "label": i % 4} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = " ".join(f"--{role}_num_gpus_per_node 1" for role in ("actor", "critic", "ref", "reward"))
    main(
        f"--pretrain {tiny_folder} --prompt_data {tmp_path / 'prompts.jsonl'} --label_key label {sizes} "
        f"--agent_func_path {tmp_path / 'agent.py'} --on_reward_failure drop --prompt_max_len 64 --generate_max_len 12 "
        "--rollout_batch_size 4 --n_samples_per_prompt 4 --train_batch_size 16 --micro_train_batch_size 4 "
        "--micro_rollout_batch_size 4 --advantage_estimator reinforce --init_kl_coef 0 --actor_learning_rate 1e-3 "
        "--vllm_num_engines 2 --vllm_sync_backend gloo --enable_prefix_caching --enforce_eager "
        f"--save_path {tmp_path / 'out'}".split()
    )
    out = tmp_path / "out"
    assert len(metrics(out)) == 2
    assert max(column(out, "response_length_max")) <= 12 + 3 + 3
    assert all(turns == 3 for turns in column(out, "reward/turns"))
    assert sum(column(out, "reward/invalid")) / 2 == 0.25
    assert column(out, "weight_version") == [0, 1]
    assert max(column(out, "engine_log_prob_diff")) < 1e-4
