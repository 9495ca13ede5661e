#!/usr/bin/env bash
#SBATCH --job-name=openrlhf-ppo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
# PPO of Llama 3 8B on two machines of a Slurm cluster, 16 GPUs that all roles and engines share. Starts Ray on every
# machine of the allocation, waits until all have joined, and runs PPO on the first; Ray ends with it.
#   sbatch examples/scripts/train_ppo_llama_ray_slurm.sh [FLAGS…]
# The folder it is submitted from must be visible on every machine. IMAGE names a container (pyxis) to run in, with that
# folder mounted; PORT is where Ray's head listens. Ray takes work only from who knows the token of this job: it is in a
# file of yours alone. Flags come last and win; more machines also want larger --*_num_nodes and --vllm_num_engines.
set -euo pipefail

nodes=$SLURM_JOB_NUM_NODES
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$first:${PORT:-6379}
container=()
if [ -n "${IMAGE:-}" ]; then
  container=(--container-image="$IMAGE" --container-mounts="$PWD:$PWD" --container-workdir="$PWD")
fi
on_first=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$first" "${container[@]}")

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray-token-$SLURM_JOB_ID
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
(umask 077 && echo "$(</proc/sys/kernel/random/uuid)" >"$RAY_AUTH_TOKEN_PATH")

wait_for() { # so many machines in Ray; a `ray start` that fails meanwhile ends the script
  RAY_ADDRESS=$address "${on_first[@]}" python3 -c '
import sys, time, ray
nodes, there, until = int(sys.argv[1]), 0, time.monotonic() + 300
while there < nodes:
    if time.monotonic() > until:
        sys.exit(f"{there} of {nodes} machines joined Ray within 300 s")
    time.sleep(1)
    try:
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=False)
        there = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:
        pass
' "$1" &
  wait -n
}

"${on_first[@]}" ray start --head --block --port="${PORT:-6379}" &
wait_for 1
if ((nodes > 1)); then
  srun --overlap --nodes=$((nodes - 1)) --ntasks=$((nodes - 1)) --exclude="$first" "${container[@]}" \
    ray start --block --address="$address" &
  wait_for "$nodes"
fi

RAY_ADDRESS=$address "${on_first[@]}" python3 -m openrlhf.cli.train_ppo_ray \
  --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
  --reward_pretrain OpenRLHF/Llama-3-8b-rm-700k \
  --normalize_reward \
  --prompt_data OpenRLHF/prompt-collection-v0.1 \
  --input_key context_messages \
  --apply_chat_template \
  --max_samples 100000 \
  --advantage_estimator gae \
  --init_kl_coef 0.01 \
  --colocate_all_models \
  --actor_num_nodes 2 --actor_num_gpus_per_node 8 \
  --critic_num_nodes 2 --critic_num_gpus_per_node 8 \
  --ref_num_nodes 2 --ref_num_gpus_per_node 8 \
  --reward_num_nodes 2 --reward_num_gpus_per_node 8 \
  --vllm_num_engines 8 \
  --vllm_tensor_parallel_size 2 \
  --vllm_gpu_memory_utilization 0.5 \
  --vllm_enable_sleep \
  --deepspeed_enable_sleep \
  --vllm_sync_backend nccl \
  --rollout_batch_size 1024 \
  --micro_rollout_batch_size 16 \
  --train_batch_size 128 \
  --micro_train_batch_size 8 \
  --max_epochs 1 \
  --num_episodes 1 \
  --prompt_max_len 1024 \
  --generate_max_len 1024 \
  --packing_samples \
  --zero_stage 3 \
  --bf16 \
  --gradient_checkpointing \
  --actor_learning_rate 5e-7 \
  --critic_learning_rate 9e-6 \
  --save_path "$PWD/checkpoint/llama3-8b-ppo" \
  --ckpt_path "$PWD/checkpoint/llama3-8b-ppo-steps" \
  --save_steps 20 \
  --load_checkpoint \
  --logging_steps 1 \
  "$@"
