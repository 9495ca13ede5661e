#!/usr/bin/env bash
# Iterative DPO (arXiv:2312.11456). Each iteration: BEST_OF answers to the next PROMPTS prompts → the reward of each
# answer → DPO of the policy on the best and the worst answer to each prompt. The reference stays the first policy.
#   ITERATIONS=3 FOLDER=runs/dpo examples/scripts/train_iterative_dpo_llama.sh
# FOLDER/iteration holds the number of the next iteration: an interrupted script goes on there. Policy and reward model
# must share a chat template, since the prompts are rendered once, by the policy's.
# shellcheck disable=SC2086  # $…_FLAGS hold several words
set -euo pipefail

: "${POLICY:=OpenRLHF/Llama-3-8b-sft-mixture}"
: "${REWARD:=OpenRLHF/Llama-3-8b-rm-mixture}"
: "${PROMPT_DATA:=OpenRLHF/prompt-collection-v0.1}" "${INPUT_KEY:=context_messages}"
: "${FOLDER:=runs/iterative_dpo}"
: "${ITERATIONS:=5}" "${PROMPTS:=10240}" "${BEST_OF:=8}"
: "${GENERATE_TASK:=generate_vllm}" # or generate, by Transformers
: "${LAUNCH:=deepspeed --module}"   # how a command starts on several GPUs; python -m for one process
: "${GENERATE_FLAGS:=}" "${RM_FLAGS:=}" "${DPO_FLAGS:=}" # further flags, which override those below

generate=$LAUNCH
if [ "$GENERATE_TASK" = generate_vllm ]; then generate="python -m"; fi # vLLM starts its own processes

mkdir -p "$FOLDER"
if [ -f "$FOLDER/iteration" ]; then iteration=$(<"$FOLDER/iteration"); else iteration=0; fi

for ((; iteration < ITERATIONS; iteration++)); do
  here=$FOLDER/$iteration
  policy=$POLICY
  if ((iteration > 0)); then policy=$FOLDER/$((iteration - 1))/policy; fi
  echo "=== iteration $iteration of $ITERATIONS, from $policy"

  $generate openrlhf.cli.batch_inference --eval_task "$GENERATE_TASK" \
    --pretrain "$policy" --bf16 \
    --dataset "$PROMPT_DATA" --input_key "$INPUT_KEY" --apply_chat_template \
    --iter "$iteration" --rollout_batch_size "$PROMPTS" --best_of_n "$BEST_OF" \
    --prompt_max_len 1024 --max_new_tokens 1024 \
    --output_path "$here/answers.jsonl" $GENERATE_FLAGS

  $LAUNCH openrlhf.cli.batch_inference --eval_task rm --post_processor iter_dpo \
    --pretrain "$REWARD" --bf16 \
    --dataset "$here/answers.jsonl" --max_len 2048 --micro_batch_size 8 \
    --output_path "$here/pairs.jsonl" $RM_FLAGS

  $LAUNCH openrlhf.cli.train_dpo \
    --pretrain "$policy" --ref_pretrain "$POLICY" --bf16 \
    --dataset "$here/pairs.jsonl" --prompt_key prompt \
    --max_len 2048 --max_epochs 1 --beta 0.1 --packing_samples --gradient_checkpointing \
    --train_batch_size 128 --micro_train_batch_size 1 --learning_rate 5e-7 --zero_stage 3 \
    --save_path "$here/policy" $DPO_FLAGS

  echo $((iteration + 1)) >"$FOLDER/iteration.part"
  mv "$FOLDER/iteration.part" "$FOLDER/iteration"
done
echo "the policy is in $FOLDER/$((ITERATIONS - 1))/policy"
