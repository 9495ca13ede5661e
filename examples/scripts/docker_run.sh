#!/usr/bin/env bash
# A shell, or the words given, in the container of dockerfile/Dockerfile, as you and with all GPUs. The current folder is
# /workspace, your Hugging Face cache is shared, the network is this machine's, which Ray on several machines needs.
#   docker build -t openrlhf -f dockerfile/Dockerfile .
#   examples/scripts/docker_run.sh examples/scripts/train_sft_llama.sh
set -euo pipefail

cache=${HF_HOME:-$HOME/.cache/huggingface}
mkdir -p "$cache"
terminal=()
if [ -t 0 ] && [ -t 1 ]; then terminal=(--interactive --tty); fi

docker run --rm "${terminal[@]}" \
  --gpus all \
  --network host \
  --shm-size 10g \
  --ulimit memlock=-1 \
  --user "$(id -u):$(id -g)" \
  --volume "$PWD:/workspace" \
  --volume "$cache:/huggingface" \
  --env HF_HOME=/huggingface \
  "${IMAGE:-openrlhf}" "$@"
