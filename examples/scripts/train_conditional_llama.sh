#!/usr/bin/env bash
# Conditional SFT (arXiv:2308.12050): the reward of both answers of each pair → SFT with the reward written behind the
# prompt → answers when the highest reward is asked for.
#   FOLDER=runs/csft examples/scripts/train_conditional_llama.sh
# PAIRS holds whole conversations in the columns chosen and rejected, or, with PROMPT_KEY, answers to a prompt in that
# column. Policy and reward model must share a chat template.
# shellcheck disable=SC2086  # $…_FLAGS hold several words
set -euo pipefail

: "${POLICY:=meta-llama/Meta-Llama-3-8B}"
: "${REWARD:=OpenRLHF/Llama-3-8b-rm-mixture}"
: "${PAIRS:=OpenRLHF/preference_dataset_mixture2_and_safe_pku}" "${PROMPT_KEY:=}"
: "${PROMPT_DATA:=OpenRLHF/prompt-collection-v0.1}" "${INPUT_KEY:=context_messages}" "${PROMPTS:=512}"
: "${FOLDER:=runs/conditional}"
: "${GENERATE_TASK:=generate_vllm}" # or generate, by Transformers
: "${LAUNCH:=deepspeed --module}"   # how a command starts on several GPUs; python -m for one process
: "${GENERATE_FLAGS:=}" "${RM_FLAGS:=}" "${SFT_FLAGS:=}" # further flags, which override those below

generate=$LAUNCH
if [ "$GENERATE_TASK" = generate_vllm ]; then generate="python -m"; fi # vLLM starts its own processes

# The reward model's own mean and std make the rewards of both files comparable, so they are not normalised again.
for side in chosen rejected; do
  columns=(--input_key "$side" --output_key "") # without an output the conversation's last message is the answer
  if [ -n "$PROMPT_KEY" ]; then columns=(--input_key "$PROMPT_KEY" --output_key "$side"); fi
  $LAUNCH openrlhf.cli.batch_inference --eval_task rm --post_processor csft \
    --pretrain "$REWARD" --bf16 \
    --dataset "$PAIRS" "${columns[@]}" --apply_chat_template --max_len 2048 --micro_batch_size 8 \
    --output_path "$FOLDER/$side.jsonl" $RM_FLAGS
done

$LAUNCH openrlhf.cli.train_sft \
  --pretrain "$POLICY" --bf16 \
  --dataset "$FOLDER/chosen.jsonl,$FOLDER/rejected.jsonl" \
  --input_key input --output_key output --input_template "{}" \
  --max_len 2048 --max_epochs 1 --packing_samples --gradient_checkpointing \
  --train_batch_size 128 --micro_train_batch_size 2 --learning_rate 5e-6 --zero_stage 3 \
  --save_path "$FOLDER/policy" $SFT_FLAGS

# The space in front of the reward is the one that stands in the training text.
$generate openrlhf.cli.batch_inference --eval_task "$GENERATE_TASK" \
  --pretrain "$FOLDER/policy" --bf16 \
  --dataset "$PROMPT_DATA" --input_key "$INPUT_KEY" --apply_chat_template --max_samples "$PROMPTS" \
  --enable_csft --csft_prompt " <rm_score>: 5.00" \
  --prompt_max_len 1024 --max_new_tokens 1024 --temperature 0.7 --top_p 0.9 \
  --output_path "$FOLDER/answers.jsonl" $GENERATE_FLAGS
