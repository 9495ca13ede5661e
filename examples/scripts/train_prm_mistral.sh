#!/usr/bin/env bash
# Process reward model on Math-Shepherd: after each step stands ки, where + or - is learnt.
# Flags given to this script come last and win. GPUS=4 uses four GPUs of this machine instead of all; PORT=29501 another
# port than 29500, for a second run on the machine.
set -euo pipefail

deepspeed ${GPUS:+--num_gpus "$GPUS"} ${PORT:+--master_port "$PORT"} --module openrlhf.cli.train_prm \
  --pretrain mistralai/Mistral-7B-v0.1 \
  --dataset peiyi9979/Math-Shepherd \
  --input_key input \
  --label_key value \
  --placeholder_token ки \
  --reward_tokens + - \
  --max_len 8192 \
  --packing_samples \
  --train_batch_size 256 \
  --micro_train_batch_size 8 \
  --max_epochs 1 \
  --learning_rate 1e-6 \
  --zero_stage 3 \
  --bf16 \
  --flash_attn \
  --gradient_checkpointing \
  --save_path ./checkpoint/mistral-7b-prm \
  --save_steps -1 \
  --logging_steps 1 \
  --eval_steps -1 \
  "$@"
