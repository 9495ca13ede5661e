"""PPO on Ray goes on from a checkpoint as if it had never stopped: two actor workers, a critic, a vLLM engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from openrlhf.cli.train_ppo_ray import main
from tests.recipes.helpers import metrics, run, write_rows

pytest.importorskip("ray")
pytest.importorskip("vllm")
pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(500)
def test_a_run_goes_on_bit_for_bit(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps with a checkpoint of the second; then the third once more, by new processes."""
    (tmp_path / "reward.py").write_text(
        "def reward_func(queries, prompts, labels):\n    return [len(set(q)) / 20 for q in queries]\n"
    )
    flags: dict[str, Any] = {
        "pretrain": tiny_folder, "remote_rm_url": tmp_path / "reward.py",
        "prompt_data": write_rows(tmp_path / "p.jsonl", [{"input": f"What is {i} + {i}?"} for i in range(6)]),
        "actor_num_gpus_per_node": 2, "critic_num_gpus_per_node": 1, "vllm_num_engines": 1, "zero_stage": 3,
        "init_kl_coef": 0, "rollout_batch_size": 4, "n_samples_per_prompt": 2, "num_episodes": 2,
        "train_batch_size": 4, "micro_train_batch_size": 2, "prompt_max_len": 32, "generate_max_len": 8,
        "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "save_value_network": True, "save_steps": 2,
        "save_hf_ckpt": True, "save_path": tmp_path / "out", "ckpt_path": tmp_path / "ckpt",
    }  # fmt: skip
    run(main, flags)
    expected = shutil.copytree(tmp_path / "out", tmp_path / "expected")
    critic = (tmp_path / "out_critic" / "model.safetensors").read_bytes()
    assert len(metrics(expected)) == 3
    parts = {str(path.relative_to(tmp_path / "ckpt" / "global_step2")) for path in tmp_path.rglob("rank*.pt")}
    assert parts == {"_actor/rank00000.pt", "_actor/rank00001.pt", "_critic/rank00000.pt", "_driver/rank00000.pt"}
    assert (tmp_path / "ckpt" / "global_step2_hf" / "model.safetensors").exists()

    run(main, flags | {"load_checkpoint": True})
    assert "going on after step 2 from " in capsys.readouterr().out
    assert metrics(tmp_path / "out") == metrics(expected)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert (tmp_path / "out_critic" / "model.safetensors").read_bytes() == critic
