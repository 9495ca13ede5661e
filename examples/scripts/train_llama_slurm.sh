#!/usr/bin/env bash
#SBATCH --job-name=openrlhf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Any command but the RL one on several machines of a Slurm cluster, one torchrun on each:
#   sbatch --nodes 4 examples/scripts/train_llama_slurm.sh openrlhf.cli.train_sft --pretrain … --dataset …
# The folder it is submitted from must be visible on every machine. PORT is where the first machine listens.
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch $0 openrlhf.cli.train_sft FLAGS…" >&2
  exit 2
fi
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc_per_node "${GPUS:-${SLURM_GPUS_ON_NODE:-8}}" \
  --rdzv_id "$SLURM_JOB_ID" \
  --rdzv_backend c10d \
  --rdzv_endpoint "$first:${PORT:-29500}" \
  -m "$@"
