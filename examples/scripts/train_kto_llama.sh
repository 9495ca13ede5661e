#!/usr/bin/env bash
# KTO from single answers labelled good or bad.
# Flags given to this script come last and win. GPUS=4 uses four GPUs of this machine instead of all; PORT=29501 another
# port than 29500, for a second run on the machine.
set -euo pipefail

deepspeed ${GPUS:+--num_gpus "$GPUS"} ${PORT:+--master_port "$PORT"} --module openrlhf.cli.train_kto \
  --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
  --dataset Dylan2048/ultrafeedback-unpaired-preferences \
  --input_key instruction \
  --output_key response \
  --label_key score \
  --input_template $'User: {}\nAssistant: ' \
  --max_len 2048 \
  --beta 0.1 \
  --train_batch_size 64 \
  --micro_train_batch_size 1 \
  --max_epochs 1 \
  --learning_rate 5e-7 \
  --zero_stage 3 \
  --bf16 \
  --flash_attn \
  --gradient_checkpointing \
  --save_path ./checkpoint/llama3-8b-kto \
  --save_steps -1 \
  --logging_steps 1 \
  --eval_steps -1 \
  "$@"
