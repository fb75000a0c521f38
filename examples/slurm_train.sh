#!/usr/bin/env bash
# Adversarial training on 2 nodes of 4 GPUs: sbatch examples/slurm_train.sh DATA
#SBATCH --job-name=robustcv-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# --batch-size is that of all processes together; --max-restarts starts again from the last finished epoch when one is lost
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node=4 --max-restarts=3 --rdzv-backend=c10d \
  --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:29500" -m robustcv train --data "$1" --model resnet50 \
  --objective fast --eps 4/255 --epochs 30 --batch-size 1024 --optimizer sgd --learning-rate 0.4 --precision bf16 \
  -o "reports/train-$SLURM_JOB_ID" --resume
