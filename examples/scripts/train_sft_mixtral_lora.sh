#!/usr/bin/env bash
# Supervised fine-tuning of Mixtral 8x7B with LoRA adapters and a load-balancing loss: ZeRO-3, packed samples.
# Flags given to this script come last and win. GPUS=4 uses four GPUs of this machine instead of all; PORT=29501 another
# port than 29500, for a second run on the machine.
set -euo pipefail

deepspeed ${GPUS:+--num_gpus "$GPUS"} ${PORT:+--master_port "$PORT"} --module openrlhf.cli.train_sft \
  --pretrain mistralai/Mixtral-8x7B-v0.1 \
  --dataset Open-Orca/OpenOrca \
  --input_key question \
  --output_key response \
  --input_template $'User: {}\nAssistant: ' \
  --max_samples 500000 \
  --max_len 2048 \
  --packing_samples \
  --lora_rank 64 \
  --lora_alpha 64 \
  --aux_loss_coef 0.001 \
  --train_batch_size 128 \
  --micro_train_batch_size 4 \
  --max_epochs 1 \
  --learning_rate 5e-6 \
  --zero_stage 3 \
  --bf16 \
  --flash_attn \
  --gradient_checkpointing \
  --save_path ./checkpoint/mixtral-sft-lora \
  --save_steps -1 \
  --logging_steps 1 \
  --eval_steps -1 \
  "$@"
