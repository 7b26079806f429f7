#!/usr/bin/env bash
# The main job, from measuring to the report, with the public commands; run by `make demo` in .demo/.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
rm -rf "$here/.demo.old"
[ -e "$here/.demo" ] && mv "$here/.demo" "$here/.demo.old"
mkdir -p "$here/.demo"
cd "$here/.demo"
began=$SECONDS

step() { printf '\n== %s  [%d s]\n' "$1" $((SECONDS - began)); }
run() { printf '$ %s\n' "$*"; "$@"; }

cores=$(nproc)
step "1. what this machine can measure"
run greentrain doctor

# Two local workers of unequal speed: by threads where there are processors enough, else by a CPU quota where
# root may set one, else equal. Each has processors of its own, so that both really run side by side.
fast_cpus=0 fast_threads=1 slow_quota="" workers=2
slow_cpus=$((cores - 1))
if [ "$cores" -ge 4 ]; then
  fast_cpus=0-1 fast_threads=2
elif python -m greentrain_harness.lab.quota 40 -- true 2>/dev/null; then
  slow_quota=40
elif [ "$cores" -ge 2 ]; then
  echo "(no CPU quota without root and too few processors: the two workers are equally fast)"
else
  echo "(one processor and no CPU quota: a single worker)"
  workers=1
fi

step "2. measure two local workers of unequal speed: device power and the layers of two models"
models=(--model digits-cnn)
if ls "${GREENTRAIN_DATA:-data}"/vaderSentiment-* >/dev/null 2>&1; then models+=(--model minilm-reviews); fi
run greentrain measure --device auto --id fast --cpus "$fast_cpus" --threads "$fast_threads" "${models[@]}"
[ "$workers" = 1 ] || run greentrain measure --device auto --id slow --cpus "$slow_cpus" --threads 1 ${slow_quota:+--quota $slow_quota} "${models[@]}"

step "3. a cluster of the two, joined with catalogue boards that can be planned with but not run"
locals=(--local "fast:cpus=$fast_cpus,threads=$fast_threads")
[ "$workers" = 1 ] || locals+=(--local "slow:cpus=$slow_cpus,threads=1${slow_quota:+,quota=$slow_quota}")
run greentrain cluster init --force --name demo "${locals[@]}" \
  --bandwidth 1Gbit --latency 0.1ms \
  --add jetson-orin-nano-8gb=2 --add jetson-nano-4gb

step "4. choose devices by energy; the time-optimal plan stands beside it"
run greentrain schedule --objective energy --model digits-cnn
step "   the same with the catalogue boards, simulated only"
run greentrain schedule --objective energy --model digits-cnn --simulated -o plan-simulated.json
run greentrain simulate plan-simulated.json

step "5. train to a stated accuracy"
run greentrain train plan.json --run digits
if [ "${#models[@]}" -gt 2 ]; then
  step "6. a second workload: the pretrained MiniLM learns the sentiment of movie reviews"
  run greentrain schedule --objective time --model minilm-reviews -o plan-reviews.json
  run greentrain train plan-reviews.json --run reviews
else
  step "6. the second workload is skipped: its sentences could not be fetched"
fi

step "7. the sustainability report"
run greentrain report runs/digits
if [ -d runs/reviews ]; then run greentrain report runs/reviews; fi

rm -rf "$here/.demo.old"
step "done"
python - <<'PY'
import json
for name in ("digits", "reviews"):
    try:
        summary = json.load(open(f"runs/{name}/summary.json"))
    except FileNotFoundError:
        continue
    print(f"{name}: accuracy {summary['accuracy']:.1%} (guessing: {summary['accuracy_baseline']:.1%}), "
          f"{summary['joules_per_sample']:.4g} J/sample, source={summary['source']}")
PY
echo "Look at: $here/.demo/runs/digits/report.html"
