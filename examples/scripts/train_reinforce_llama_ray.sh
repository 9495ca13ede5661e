#!/usr/bin/env bash
# REINFORCE++ (arXiv:2501.03262) of Llama 3 8B, without a critic, every role and engine on GPUs of its own: 8 GPUs.
# Submits a job to the Ray cluster whose job server is at ADDRESS. The job works in a copy of the current folder, so
# what is to last has an absolute path. Flags given to this script come last and win.
set -euo pipefail

ray job submit --address="${ADDRESS:-http://127.0.0.1:8265}" \
  --runtime-env-json='{"working_dir": ".", "excludes": ["/checkpoint"]}' \
  -- python3 -m openrlhf.cli.train_ppo_ray \
  --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
  --reward_pretrain OpenRLHF/Llama-3-8b-rm-700k \
  --normalize_reward \
  --prompt_data OpenRLHF/prompt-collection-v0.1 \
  --input_key context_messages \
  --apply_chat_template \
  --max_samples 100000 \
  --advantage_estimator reinforce \
  --init_kl_coef 0.01 \
  --actor_num_nodes 1 --actor_num_gpus_per_node 4 \
  --ref_num_nodes 1 --ref_num_gpus_per_node 1 \
  --reward_num_nodes 1 --reward_num_gpus_per_node 1 \
  --vllm_num_engines 2 \
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
  --actor_learning_rate 5e-7 \
  --save_path "$PWD/checkpoint/llama3-8b-reinforce" \
  --ckpt_path "$PWD/checkpoint/llama3-8b-reinforce-steps" \
  --save_steps 20 \
  --load_checkpoint \
  --logging_steps 1 \
  "$@"
