#!/usr/bin/env bash
# Serve a reward model to RL runs:
#   examples/scripts/serve_remote_rm.sh MODEL [FLAGS…]
#   openrlhf ppo … --remote_rm_url http://127.0.0.1:5000/get_reward
# For clients on other machines: OPENRLHF_RM_TOKEN=secret HOST=0.0.0.0 here, and the same OPENRLHF_RM_TOKEN there.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: $0 MODEL [FLAGS…]" >&2
  exit 2
fi

python -m openrlhf.cli.serve_rm \
  --reward_pretrain "$1" \
  --host "${HOST:-127.0.0.1}" \
  --port "${PORT:-5000}" \
  --normalize_reward \
  --bf16 \
  --max_len 8192 \
  --batch_size 16 \
  "${@:2}"
