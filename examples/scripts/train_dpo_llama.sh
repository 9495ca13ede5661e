#!/usr/bin/env bash
# DPO of an 8B policy. --ipo makes it IPO, --label_smoothing 0.1 cDPO; --nll_loss_coef 0.2 adds the likelihood of the
# chosen answer; --ref_offload keeps the reference in host memory.
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
  --ckpt_path ./checkpoint/llama3-8b-dpo-steps \
  --save_steps 500 \
  --load_checkpoint \
  --logging_steps 1 \
  --eval_steps -1 \
  "$@"
