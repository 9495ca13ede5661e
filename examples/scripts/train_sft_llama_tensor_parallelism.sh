#!/usr/bin/env bash
# Supervised fine-tuning of Llama 3 8B with every layer shared by two GPUs (AutoTP).
# Flags given to this script come last and win. GPUS=4 uses four GPUs of this machine instead of all; PORT=29501 another
# port than 29500, for a second run on the machine.
set -euo pipefail

deepspeed ${GPUS:+--num_gpus "$GPUS"} ${PORT:+--master_port "$PORT"} --module openrlhf.cli.train_sft \
  --pretrain meta-llama/Meta-Llama-3-8B \
  --dataset Open-Orca/OpenOrca \
  --input_key question \
  --output_key response \
  --input_template $'User: {}\nAssistant: ' \
  --max_samples 500000 \
  --max_len 2048 \
  --packing_samples \
  --train_batch_size 256 \
  --micro_train_batch_size 2 \
  --max_epochs 1 \
  --learning_rate 5e-6 \
  --zero_stage 2 \
  --ds_tensor_parallel_size 2 \
  --bf16 \
  --flash_attn \
  --gradient_checkpointing \
  --save_path ./checkpoint/llama3-8b-sft \
  --save_steps -1 \
  --logging_steps 1 \
  --eval_steps -1 \
  "$@"
