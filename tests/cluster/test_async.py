"""Asynchronous RL on Ray + vLLM + DeepSpeed: engines, reward function and actor really work at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from tests.recipes.helpers import column, run, write_rows
from tests.recipes.test_async import trained_prompts

pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# The rewards of rollout k are not there before step k − 1 was logged, which is after its sync.
REWARD = """
import time
from pathlib import Path

LOG = Path({log!r})
calls = 0

def reward_func(queries, prompts, labels):
    global calls
    until = time.monotonic() + 100
    while calls > len(LOG.read_text().splitlines()):
        assert time.monotonic() < until, "step %d did not end" % calls
        time.sleep(0.01)
    calls += 1
    return {{"rewards": [len(set(q)) / 20 for q in queries],
             "extra_logs": {{"prompts": [2.0 ** int(label) for label in labels]}}}}
"""


@pytest.mark.timeout(400)
def test_a_step_ends_while_the_next_rollout_waits_for_its_reward(tiny_folder: Path, tmp_path: Path) -> None:
    """Were a rollout, its reward, the update or the sync in each other's way, the reward would wait in vain. That the
    rollout of step 2 began before is seen by its version."""
    out = tmp_path / "out"
    (tmp_path / "reward.py").write_text(REWARD.format(log=str(out / "metrics.jsonl")))
    rows = [{"input": f"What is {i} + {i}?", "label": i} for i in range(8)]
    flags: dict[str, Any] = {
        "pretrain": tiny_folder, "remote_rm_url": tmp_path / "reward.py", "label_key": "label",
        "prompt_data": write_rows(tmp_path / "p.jsonl", rows), "advantage_estimator": "rloo", "init_kl_coef": 0,
        "actor_num_gpus_per_node": 1, "vllm_num_engines": 2, "rollout_batch_size": 2, "n_samples_per_prompt": 2,
        "train_batch_size": 4, "micro_train_batch_size": 2, "prompt_max_len": 32, "generate_max_len": 8,
        "actor_learning_rate": 1e-3, "async_train": True, "enable_vllm_is_correction": True, "save_path": out,
    }  # fmt: skip
    run(main, flags)
    assert sorted(trained_prompts(out, at_once=2)) == list(range(8))
    assert column(out, "weight_version") == [0, 0, 1, 2]
    assert column(out, "staleness") == column(out, "staleness_max") == [0, 1, 1, 1]
    assert "busy/" not in (out / "metrics.jsonl").read_text()  # what the engines worked belongs to no phase
    differences = column(out, "engine_log_prob_diff")
    assert differences[0] < 1e-3 < min(differences[2:])
