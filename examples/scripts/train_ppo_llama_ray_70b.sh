#!/usr/bin/env bash
# PPO of Llama 3 70B on five machines, 40 GPUs: actor and reference on 16, four engines on 16, critic and reward model,
# of 8B, on 8. The optimisers live in host memory. It returns when the job is accepted: `ray job logs -f ID` follows it.
# Submits a job to the Ray cluster whose job server is at ADDRESS. The job works in a copy of the current folder, so
# what is to last has an absolute path. Flags given to this script come last and win.
set -euo pipefail

ray job submit --address="${ADDRESS:-http://127.0.0.1:8265}" --no-wait \
  --runtime-env-json='{"working_dir": ".", "excludes": ["/checkpoint"]}' \
  -- python3 -m openrlhf.cli.train_ppo_ray \
  --pretrain meta-llama/Meta-Llama-3-70B-Instruct \
  --reward_pretrain OpenRLHF/Llama-3-8b-rm-700k \
  --normalize_reward \
  --prompt_data OpenRLHF/prompt-collection-v0.1 \
  --input_key context_messages \
  --apply_chat_template \
  --max_samples 100000 \
  --advantage_estimator gae \
  --init_kl_coef 0.01 \
  --colocate_actor_ref \
  --colocate_critic_reward \
  --actor_num_nodes 2 --actor_num_gpus_per_node 8 \
  --ref_num_nodes 2 --ref_num_gpus_per_node 8 \
  --critic_num_nodes 1 --critic_num_gpus_per_node 8 \
  --reward_num_nodes 1 --reward_num_gpus_per_node 8 \
  --vllm_num_engines 4 \
  --vllm_tensor_parallel_size 4 \
  --vllm_sync_backend nccl \
  --rollout_batch_size 1024 \
  --micro_rollout_batch_size 16 \
  --train_batch_size 128 \
  --micro_train_batch_size 4 \
  --max_epochs 1 \
  --num_episodes 1 \
  --prompt_max_len 1024 \
  --generate_max_len 1024 \
  --packing_samples \
  --zero_stage 3 \
  --bf16 \
  --gradient_checkpointing \
  --adam_offload \
  --actor_learning_rate 5e-7 \
  --critic_learning_rate 9e-6 \
  --save_path "$PWD/checkpoint/llama3-70b-ppo" \
  --ckpt_path "$PWD/checkpoint/llama3-70b-ppo-steps" \
  --save_steps 20 \
  --load_checkpoint \
  --logging_steps 1 \
  "$@"
