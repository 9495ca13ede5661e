#!/usr/bin/env bash
# Continued pre-training of Llama 3 8B on plain text: every token is learnt.
# Flags given to this script come last and win. GPUS=4 uses four GPUs of this machine instead of all; PORT=29501 another
# port than 29500, for a second run on the machine.
set -euo pipefail

deepspeed ${GPUS:+--num_gpus "$GPUS"} ${PORT:+--master_port "$PORT"} --module openrlhf.cli.train_sft \
  --pretrain meta-llama/Meta-Llama-3-8B \
  --pretrain_mode \
  --dataset cerebras/SlimPajama-627B \
  --input_key text \
  --max_samples 500000 \
  --max_len 2048 \
  --packing_samples \
  --train_batch_size 256 \
  --micro_train_batch_size 1 \
  --max_epochs 1 \
  --learning_rate 3e-4 \
  --zero_stage 3 \
  --bf16 \
  --flash_attn \
  --gradient_checkpointing \
  --save_path ./checkpoint/llama3-8b-continued \
  --save_steps -1 \
  --logging_steps 1 \
  --eval_steps -1 \
  "$@"
