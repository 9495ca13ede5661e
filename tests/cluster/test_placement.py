from pathlib import Path

import pytest

from openrlhf.cluster.placement import plan
from openrlhf.config.commands import PPOConfig
from openrlhf.config.parse import read

FLAGS = (
    "--pretrain m --reward_pretrain r --prompt_data p --vllm_num_engines 2 --rollout_batch_size 64 "
    "--train_batch_size 64 --actor_num_gpus_per_node 2 --critic_num_gpus_per_node 2 --ref_num_gpus_per_node 2 "
    "--reward_num_gpus_per_node 2"
)


def placed(extra: str = "", flags: str = FLAGS):
    return plan(read(PPOConfig, f"{flags} {extra}".split()))


def test_separate_roles_have_a_pool_each_and_engines_have_devices_of_their_own():
    placement = placed()
    assert [pool.roles for pool in placement.pools] == [("actor",), ("reference",), ("critic",), ("reward",)]
    assert placement.devices == 4 * 2 + 2


@pytest.mark.parametrize(
    ("flag", "pools", "devices"),
    [
        ("--colocate_actor_ref", [("actor", "reference"), ("critic",), ("reward",)], 8),
        ("--colocate_critic_reward", [("actor",), ("reference",), ("critic", "reward")], 8),
        ("--colocate_actor_ref --colocate_critic_reward", [("actor", "reference"), ("critic", "reward")], 6),
        ("--colocate_all_models", [("actor", "critic", "reference", "reward")], 2),
    ],
)
def test_colocated_roles_share_a_pool(flag, pools, devices):
    placement = placed(flag)
    assert [pool.roles for pool in placement.pools] == pools
    assert placement.devices == devices


def test_roles_that_the_run_does_not_need_get_no_devices():
    placement = placed("--advantage_estimator reinforce --init_kl_coef 0")
    assert [pool.roles for pool in placement.pools] == [("actor",), ("reward",)]


def test_an_actor_with_an_adapter_is_its_own_reference():
    flags = FLAGS.replace("--ref_num_gpus_per_node 2 ", "")
    assert [pool.roles for pool in placed("--lora_rank 4", flags).pools] == [("actor",), ("critic",), ("reward",)]
    together = placed("--lora_rank 4 --colocate_all_models", flags)
    assert [pool.roles for pool in together.pools] == [("actor", "critic", "reward")]


def test_a_reward_function_needs_no_reward_model():
    flags = FLAGS.replace("--reward_pretrain r", f"--remote_rm_url {Path('f.py')}")
    placement = plan(read(PPOConfig, flags.split()))
    assert ("reward",) not in [pool.roles for pool in placement.pools]


def test_the_devices_of_an_engine_are_its_tensor_parallel_size():
    assert placed("--vllm_tensor_parallel_size 2").devices == 4 * 2 + 2 * 2


def test_the_flags_of_an_engine_reach_it():
    pytest.importorskip("ray")
    from openrlhf.cluster.start import engine_arguments

    flags = FLAGS.replace("--vllm_num_engines 2", "--vllm_num_engines 1").replace("--pretrain m", "--pretrain ./m")
    own = (
        "--vllm_tensor_parallel_size 2 --vllm_gpu_memory_utilization 0.5 --enforce_eager --enable_prefix_caching "
        "--colocate_all_models --vllm_enable_sleep --bf16 --prompt_max_len 30 --generate_max_len 12 --seed 7"
    )
    assert engine_arguments(read(PPOConfig, f"{flags} {own}".split()), 3) == {
        "model": "./m", "dtype": "bfloat16", "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5,
        "enforce_eager": True, "enable_prefix_caching": True, "enable_sleep_mode": True, "max_model_len": 42,
        "seed": 10, "trust_remote_code": False, "interruptible": False,
    }  # fmt: skip
    plain = engine_arguments(read(PPOConfig, flags.split()), 0)
    off = ("enforce_eager", "enable_prefix_caching", "enable_sleep_mode")
    assert [plain[name] for name in off] == [False] * 3
    assert (plain["tensor_parallel_size"], plain["gpu_memory_utilization"], plain["dtype"]) == (1, 0.95, "float32")


def test_without_engines_the_roles_are_all_there_is():
    assert (placed().engines, placed().devices) == (2, 4 * 2 + 2)
    without = placed(flags=FLAGS.replace("--vllm_num_engines 2", "--vllm_num_engines 0"))
    assert (without.engines, without.devices) == (0, 4 * 2)


def test_missing_gpus_are_named_and_a_cpu_machine_is_fine():
    pytest.importorskip("ray")
    from openrlhf.cluster.start import check_devices

    check_devices(placed(), there=10)
    check_devices(placed(), there=0)
    with pytest.raises(ValueError, match="needs 10 GPUs .*--actor_num_gpus_per_node.* the cluster has 8"):
        check_devices(placed(), there=8)
