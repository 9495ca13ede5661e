#!/usr/bin/env bash
# GRPO (arXiv:2402.03300): eight answers to each prompt are compared, the KL (k3) is in the loss. All roles and engines
# share 8 GPUs.
# Submits a job to the Ray cluster whose job server is at ADDRESS. The job works in a copy of the current folder, so
# what is to last has an absolute path. Flags given to this script come last and win.
set -euo pipefail

ray job submit --address="${ADDRESS:-http://127.0.0.1:8265}" \
  --runtime-env-json='{"working_dir": ".", "excludes": ["/checkpoint"]}' \
  -- python3 -m openrlhf.cli.train_ppo_ray \
  --pretrain Qwen/Qwen3-8B \
  --remote_rm_url examples/python/reward.py \
  --prompt_data zwhe99/DeepMath-103K \
  --input_key question \
  --label_key final_answer \
  --apply_chat_template \
  --max_samples 100000 \
  --advantage_estimator group_norm \
  --use_kl_loss \
  --kl_estimator k3 \
  --init_kl_coef 0.001 \
  --colocate_all_models \
  --actor_num_nodes 1 --actor_num_gpus_per_node 8 \
  --ref_num_nodes 1 --ref_num_gpus_per_node 8 \
  --vllm_num_engines 4 \
  --vllm_tensor_parallel_size 2 \
  --vllm_gpu_memory_utilization 0.5 \
  --vllm_enable_sleep \
  --deepspeed_enable_sleep \
  --vllm_sync_backend nccl \
  --enable_prefix_caching \
  --n_samples_per_prompt 8 \
  --rollout_batch_size 128 \
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
  --save_path "$PWD/checkpoint/qwen3-8b-grpo" \
  --ckpt_path "$PWD/checkpoint/qwen3-8b-grpo-steps" \
  --save_steps 20 \
  --load_checkpoint \
  --logging_steps 1 \
  "$@"
