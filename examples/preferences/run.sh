#!/usr/bin/env bash
# SFT on the better answers, a reward model on the pairs, then PPO with a critic and a KL penalty against that reward
# model, on Ray + vLLM + DeepSpeed, with a tiny model on a CPU.
#   examples/preferences/run.sh path/to/pairs.json [output folder] [--local]
# prepare.py says what a row holds. With --local the RL part runs in one process instead of on Ray.
set -euo pipefail
data=${1:?usage: run.sh PAIRS [FOLDER] [--local]}
folder=${2:-runs/preferences}
mode=${3:-}
here=$(dirname "$0")

python "$here/prepare.py" "$data" "$folder"

python -m openrlhf.cli.train_sft \
  --pretrain "$folder/base" \
  --dataset "$folder/pairs.jsonl" --input_key prompt --output_key chosen --input_template $'User: {}\nAssistant:\n' \
  --max_len 160 --max_epochs "${SFT_EPOCHS:-12}" \
  --train_batch_size 16 --micro_train_batch_size 8 --packing_samples \
  --learning_rate 2e-3 --logging_steps 10 \
  --save_path "$folder/sft"

python -m openrlhf.cli.train_rm \
  --pretrain "$folder/sft" \
  --dataset "$folder/pairs.jsonl" --eval_dataset "$folder/pairs.jsonl" \
  --prompt_key prompt --input_template $'User: {}\nAssistant:\n' \
  --max_len 160 --max_epochs "${RM_EPOCHS:-3}" \
  --train_batch_size 16 --micro_train_batch_size 8 --packing_samples \
  --learning_rate 3e-4 --logging_steps 10 \
  --save_path "$folder/rm"

if [ "$mode" = --local ]; then
  placement=(--local)
else
  placement=(
    --actor_num_gpus_per_node 1 --ref_num_gpus_per_node 1 --critic_num_gpus_per_node 1 --reward_num_gpus_per_node 1
    --colocate_actor_ref --colocate_critic_reward --vllm_num_engines 1 --vllm_sync_backend gloo
  )
fi

python -m openrlhf.cli.train_ppo_ray "${placement[@]}" \
  --pretrain "$folder/sft" --reward_pretrain "$folder/rm" --normalize_reward \
  --prompt_data "$folder/pairs.jsonl" --input_key prompt --input_template $'User: {}\nAssistant:\n' \
  --max_samples "${RL_PROMPTS:-160}" --prompt_max_len 96 --generate_max_len 48 \
  --advantage_estimator gae --n_samples_per_prompt 8 --num_episodes "${RL_EPISODES:-3}" \
  --rollout_batch_size 16 --train_batch_size 128 --micro_train_batch_size 32 --micro_rollout_batch_size 32 \
  --packing_samples --init_kl_coef 0.03 \
  --actor_learning_rate 5e-4 --critic_learning_rate 1e-3 \
  --save_path "$folder/rl"
