#!/usr/bin/env bash
# DPO on long conversations: two GPUs share each sequence (ring attention), two key-value heads at a time.
# Flags given to this script come last and win. GPUS=4 uses four GPUs of this machine instead of all; PORT=29501 another
# port than 29500, for a second run on the machine.
set -euo pipefail

deepspeed ${GPUS:+--num_gpus "$GPUS"} ${PORT:+--master_port "$PORT"} --module openrlhf.cli.train_dpo \
  --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
  --dataset OpenRLHF/preference_dataset_mixture2_and_safe_pku \
  --apply_chat_template \
  --chosen_key chosen \
  --rejected_key rejected \
  --max_len 8192 \
  --packing_samples \
  --ring_attn_size 2 \
  --ring_head_stride 2 \
  --beta 0.1 \
  --train_batch_size 256 \
  --micro_train_batch_size 1 \
  --max_epochs 1 \
  --learning_rate 5e-7 \
  --zero_stage 3 \
  --bf16 \
  --flash_attn \
  --gradient_checkpointing \
  --save_path ./checkpoint/llama3-8b-dpo \
  --save_steps -1 \
  --logging_steps 1 \
  --eval_steps -1 \
  "$@"
