#!/usr/bin/env bash
# SFT on short problems of GSM8K, then GRPO with the mathematics reward on Ray + vLLM + DeepSpeed, with a tiny model on a
# CPU. The model half learns the problems by heart, and the reward then makes it surer of what is right.
#   examples/gsm8k/run.sh path/to/gsm8k_train.jsonl [output folder] [--local]
# Rows need the keys question and answer. With --local the RL part runs in one process instead of on Ray.
set -euo pipefail
data=${1:?usage: run.sh GSM8K_FILE [FOLDER] [--local]}
folder=${2:-runs/gsm8k}
mode=${3:-}
here=$(dirname "$0")

python "$here/prepare.py" "$data" "$folder" "${PROBLEMS:-32}"

# The template ends in a line break: a space would be part of the first word's token.
python -m openrlhf.cli.train_sft \
  --pretrain "$folder/base" \
  --dataset "$folder/problems.jsonl" --input_key question --output_key answer \
  --input_template $'Question: {}\nAnswer:\n' \
  --max_len 320 --max_epochs "${SFT_EPOCHS:-60}" \
  --train_batch_size 16 --micro_train_batch_size 16 --packing_samples \
  --learning_rate 2e-3 --logging_steps 10 \
  --save_path "$folder/sft"

if [ "$mode" = --local ]; then
  placement=(--local)
else
  placement=(--actor_num_gpus_per_node 1 --ref_num_gpus_per_node 1 --vllm_num_engines 1 --vllm_sync_backend gloo)
fi

python -m openrlhf.cli.train_ppo_ray "${placement[@]}" \
  --pretrain "$folder/sft" \
  --remote_rm_url "$here/../python/math_reward.py" \
  --prompt_data "$folder/problems.jsonl" --input_key question --label_key answer \
  --input_template $'Question: {}\nAnswer:\n' \
  --prompt_max_len 192 --generate_max_len 96 --num_episodes "${RL_EPISODES:-24}" \
  --advantage_estimator group_norm --n_samples_per_prompt 8 \
  --rollout_batch_size 32 --train_batch_size 256 --micro_train_batch_size 32 --micro_rollout_batch_size 32 \
  --packing_samples --init_kl_coef 0.01 --use_kl_loss --kl_estimator k3 \
  --actor_learning_rate 2e-4 \
  --save_path "$folder/rl"
