#!/usr/bin/env bash
# An audit on 2 nodes of 4 GPUs: sbatch examples/slurm_audit.sh RUN_FOLDER DATA
#SBATCH --job-name=robustcv-audit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=02:00:00
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# the run folder lies on a file system that all nodes see; after a requeue --resume goes on, with any number of nodes
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
  --rdzv-endpoint="$first:29500" -m robustcv audit --model "$1" --data "$2" --eps 4/255 \
  -o "reports/audit-$SLURM_JOB_ID" --resume
