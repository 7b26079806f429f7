#!/usr/bin/env bash
# Root on Linux: four emulated boards behind 100 Mbit/s links, measured, scheduled, trained and reported.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
name=demo
greentrain lab down --name $name >/dev/null 2>&1 || true
trap 'greentrain lab down --name $name' EXIT
rm -rf "$here/.demo-lab"
mkdir -p "$here/.demo-lab"
cd "$here/.demo-lab"
run() { printf '\n$ %s\n' "$*"; "$@"; }
run greentrain lab up --name $name
run greentrain lab exec --name $name --all --in-turn -- greentrain measure --device jetson
run greentrain cluster init --lab $name --force
run greentrain schedule --objective energy
run greentrain train plan.json --run energy --epochs 3
run greentrain train plan.time-optimal.json --run fastest --epochs 3
run greentrain report runs/energy --against runs/fastest
