#!/usr/bin/env bash
# Rejection sampling (arXiv:2304.06767). Each iteration: BEST_OF answers to the next PROMPTS prompts → the reward of each
# answer → SFT of the policy on the best answer to each prompt.
#   ITERATIONS=3 FOLDER=runs/rs examples/scripts/train_rejection_sampling_llama.sh
# FOLDER/iteration holds the number of the next iteration: an interrupted script goes on there. Policy and reward model
# must share a chat template, since the prompts are rendered once, by the policy's.
# shellcheck disable=SC2086  # $…_FLAGS hold several words
set -euo pipefail

: "${POLICY:=OpenRLHF/Llama-3-8b-sft-mixture}"
: "${REWARD:=OpenRLHF/Llama-3-8b-rm-mixture}"
: "${PROMPT_DATA:=OpenRLHF/prompt-collection-v0.1}" "${INPUT_KEY:=context_messages}"
: "${FOLDER:=runs/rejection_sampling}"
: "${ITERATIONS:=10}" "${PROMPTS:=10240}" "${BEST_OF:=4}"
: "${GENERATE_TASK:=generate_vllm}" # or generate, by Transformers
: "${LAUNCH:=deepspeed --module}"   # how a command starts on several GPUs; python -m for one process
: "${GENERATE_FLAGS:=}" "${RM_FLAGS:=}" "${SFT_FLAGS:=}" # further flags, which override those below

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
    --prompt_max_len 1024 --max_new_tokens 1024 --temperature 0.9 \
    --output_path "$here/answers.jsonl" $GENERATE_FLAGS

  $LAUNCH openrlhf.cli.batch_inference --eval_task rm --post_processor rs \
    --pretrain "$REWARD" --bf16 \
    --dataset "$here/answers.jsonl" --max_len 2048 --micro_batch_size 8 \
    --output_path "$here/best.jsonl" $RM_FLAGS

  $LAUNCH openrlhf.cli.train_sft \
    --pretrain "$policy" --bf16 \
    --dataset "$here/best.jsonl" --input_key input --output_key output --input_template "{}" \
    --max_len 2048 --max_epochs 1 --packing_samples --gradient_checkpointing \
    --train_batch_size 128 --micro_train_batch_size 2 --learning_rate 2e-6 --zero_stage 3 \
    --save_path "$here/policy" $SFT_FLAGS

  echo $((iteration + 1)) >"$FOLDER/iteration.part"
  mv "$FOLDER/iteration.part" "$FOLDER/iteration"
done
echo "the policy is in $FOLDER/$((ITERATIONS - 1))/policy"
