#!/bin/bash
# Train, then evaluate, on the GPUs of one or more machines that see the same files:
#     sbatch --nodes 2 configs/slurm.sh configs/configs_ABC.json
# One task a node, in which torchrun starts a process per GPU. Submitted again, or requeued, the job goes on.
#SBATCH --job-name=arvrm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
config=${1:?name a configuration, such as configs/configs_ABC.json}

export ARVRM_HEAD ACCELERATE_MIXED_PRECISION=bf16 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# not through head, whose early end kills scontrol, and by pipefail this script, when scontrol is the slower one
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
ARVRM_HEAD=${hosts%%$'\n'*}

launch() {
    srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
        --node-rank "$SLURM_NODEID" --master-addr "$ARVRM_HEAD" --master-port "${ARVRM_PORT:-29500}" "$@"' torchrun "$@"
}

launch train.py --config "$config" --resume
launch evaluate.py --config "$config" --device cuda --resume
