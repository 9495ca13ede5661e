#!/usr/bin/env bash
# PPO of Llama 3 8B with rewards from HTTP servers: 7 GPUs, and one for examples/scripts/serve_remote_rm.sh, which is to
# run on the machine of the Ray head, or elsewhere with --remote_rm_url. The critic starts from the reward model.
# Submits a job to the Ray cluster whose job server is at ADDRESS. The job works in a copy of the current folder, so
# what is to last has an absolute path. Flags given to this script come last and win.
set -euo pipefail

ray job submit --address="${ADDRESS:-http://127.0.0.1:8265}" \
  --runtime-env-json='{"working_dir": ".", "excludes": ["/checkpoint"]}' \
  -- python3 -m openrlhf.cli.train_ppo_ray \
  --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
  --critic_pretrain OpenRLHF/Llama-3-8b-rm-700k \
  --remote_rm_url http://127.0.0.1:5000/get_reward \
  --prompt_data OpenRLHF/prompt-collection-v0.1 \
  --input_key context_messages \
  --apply_chat_template \
  --max_samples 100000 \
  --advantage_estimator gae \
  --init_kl_coef 0.01 \
  --colocate_actor_ref \
  --actor_num_nodes 1 --actor_num_gpus_per_node 4 \
  --ref_num_nodes 1 --ref_num_gpus_per_node 4 \
  --critic_num_nodes 1 --critic_num_gpus_per_node 2 \
  --vllm_num_engines 1 \
  --vllm_tensor_parallel_size 1 \
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
  --adam_offload \
  --actor_learning_rate 5e-7 \
  --critic_learning_rate 9e-6 \
  --save_path "$PWD/checkpoint/llama3-8b-ppo" \
  --ckpt_path "$PWD/checkpoint/llama3-8b-ppo-steps" \
  --save_steps 20 \
  --load_checkpoint \
  --logging_steps 1 \
  "$@"
