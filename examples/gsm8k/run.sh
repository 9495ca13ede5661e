#!/usr/bin/env bash
# SFT on GSM8K, then RL on Ray + vLLM + DeepSpeed, with a tiny model on a CPU.
#   examples/gsm8k/run.sh path/to/gsm8k_train.jsonl [output folder] [--local]
# Rows need the keys question and answer. With --local the RL part runs in one process instead of on Ray.
set -euo pipefail
data=${1:?usage: run.sh GSM8K_FILE [FOLDER] [--local]}
folder=${2:-runs/gsm8k}
mode=${3:-}
here=$(dirname "$0")

python "$here/prepare.py" "$data" "$folder/base"

python -m openrlhf.cli.train_sft \
  --pretrain "$folder/base" \
  --dataset "$data" --input_key question --output_key answer \
  --input_template $'Question: {}\nAnswer: ' \
  --max_samples "${SFT_ROWS:-3000}" --max_len 320 --max_epochs 1 \
  --train_batch_size 32 --micro_train_batch_size 16 --packing_samples \
  --learning_rate 2e-3 --logging_steps 10 \
  --save_path "$folder/sft"

if [ "$mode" = --local ]; then
  placement=(--local)
else
  placement=(--actor_num_gpus_per_node 1 --ref_num_gpus_per_node 1 --vllm_num_engines 1 --vllm_sync_backend gloo)
fi

python -m openrlhf.cli.train_ppo_ray "${placement[@]}" \
  --pretrain "$folder/sft" \
  --remote_rm_url "$here/reward.py" \
  --prompt_data "$data" --input_key question --label_key answer \
  --input_template $'Question: {}\nAnswer: ' \
  --max_samples "${RL_PROMPTS:-512}" --prompt_max_len 192 --generate_max_len 160 \
  --advantage_estimator group_norm --n_samples_per_prompt 8 \
  --rollout_batch_size 16 --train_batch_size 128 --micro_train_batch_size 32 --micro_rollout_batch_size 32 \
  --packing_samples --init_kl_coef 0.001 --use_kl_loss --kl_estimator k3 \
  --actor_learning_rate 1e-4 \
  --save_path "$folder/rl"
