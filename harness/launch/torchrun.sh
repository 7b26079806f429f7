#!/bin/sh
# One worker on this host: sh torchrun.sh RANK HOSTS MASTER [RUN]. Start it on every host of the plan; MASTER is the
# address of the host with rank 0, the plan's first device. (`--` keeps torchrun from reading the worker's options.)
set -eu
rank=$1 hosts=$2 master=$3 run=${4:-run-1}
exec torchrun --nnodes "$hosts" --node-rank "$rank" --nproc-per-node 1 \
  --master-addr "$master" --master-port 29500 \
  -m -- greentrain.cli train plan.json --from-environment --run "$run"
