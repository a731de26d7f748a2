#!/usr/bin/env bash
# One study on a SLURM allocation: Ray on every node, the study's driver on the first. Edit the five #SBATCH lines and the two folders.
#   sbatch docs/cluster/slurm.sh paper_ablation
# The signal gives a study that runs out of time two minutes to leave cleanly; submit the same line again and it goes on.
#SBATCH --job-name=reco-tune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@120
set -euo pipefail

space=${1:?name a search space}
study=${STUDY:-/shared/studies/$(basename "$space" .yaml)}   # on storage that every node sees
environment=${ENVIRONMENT:-/shared/reco-tune/.venv}          # the environment that `make setup` made, on that storage too

source "$environment/bin/activate"
# A token, so that nobody else who reaches the ports can use the cluster; every node reads the same file.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"
mkdir -p "$HOME/.ray"
[ -s "$RAY_AUTH_TOKEN_PATH" ] || (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}'):$port

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --node-ip-address="${address%:*}" --port="$port" --block &
sleep 20
if [ "${#nodes[@]}" -gt 1 ]; then
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" ray start --address="$address" --block &
  sleep 20
fi

# A study that is there goes on; a new one begins. `exec` is left out on purpose: bash passes the signal on.
if [ -s "$study/events.jsonl" ]; then
  reco-tune resume "$study" --address "$address" &
else
  reco-tune run "$space" --address "$address" --output "$study" --set resources.gpus_per_worker=1 &
fi
driver=$!
trap 'kill -INT "$driver"' INT
wait "$driver" || { wait "$driver"; exit $?; }
