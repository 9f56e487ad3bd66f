#!/usr/bin/env bash
# All that is worth knowing about one machine with a CUDA device, in one go and within nine minutes.
#
#     bash benchmarks/cuda.sh OUT                      every part
#     bash benchmarks/cuda.sh OUT tests                some parts: versions step profile at_once
#                                                      compiled pipeline tests
#     bash benchmarks/cuda.sh OUT --rehearse           on a CPU, tiny: does every part run at all?
#
# OUT gets at most eight files: summary.txt (versions, and which parts passed), benchmarks.log (what
# the parts said), tests.log, and a JSON file a benchmark. A part that fails or runs out of time does
# not stop the others; the exit code is 1 if any did.
#
# Nothing is downloaded. If an import fails, the wheels in $WHEELS, benchmarks/wheels or wheels are
# installed into a temporary folder. PYTHON names the interpreter (python3), BUDGET the seconds (510;
# of a rehearsal 1800).
set -uo pipefail

usage() {
    sed -n '2,15s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-python3}"
budget="${BUDGET:-510}"
begun=$SECONDS
rehearse=false
out=""
parts=()
for argument in "$@"; do
    case "$argument" in
        --rehearse) rehearse=true ;;
        versions | step | profile | at_once | compiled | pipeline | tests) parts+=("$argument") ;;
        -*) usage ;;
        *) [[ -z "$out" ]] && out="$argument" || usage ;;
    esac
done
[[ -n "$out" ]] || usage
# The quick and most telling ones first; the tests take what time is left.
[[ ${#parts[@]} -gt 0 ]] || parts=(versions step profile at_once compiled pipeline tests)

mkdir -p "$out"
out="$(cd "$out" && pwd)"
summary="$out/summary.txt"
log="$out/benchmarks.log"
: > "$summary"
: > "$log"
cd "$root" || exit 1
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 WANDB_MODE=disabled

say() {
    echo "$@" | tee -a "$summary"
}

# ------------------------------------------------------------------------------- what is missing

complete() {
    "$python" -c "
import pytest, scipy, pyarrow, matplotlib
import benchmarks.step, mosaickd.launch" 2>> "$log"
}

if ! complete; then
    for folder in "${WHEELS:-}" "$root/benchmarks/wheels" "$root/wheels"; do
        [[ -n "$folder" && -d "$folder" ]] || continue
        say "installing $(find "$folder" -name '*.whl' | wc -l) wheels of $folder"
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
            --target "$scratch/site" "$folder"/*.whl >> "$log" 2>&1
        export PYTHONPATH="$root:$scratch/site:${PYTHONPATH#"$root"}"
        break
    done
    if ! complete; then
        say "FAILED: something can't be imported, see the end of $log; put its wheel into \$WHEELS"
        exit 1
    fi
fi

# --------------------------------------------------------------------------------------- sizes

if $rehearse; then
    budget="${BUDGET:-1800}"
    export CUDA_VISIBLE_DEVICES="" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    game=(experiment=quickstart train.batch_size=8 device=cpu tracker=none)
    few=(--iterations 1 --images 64)
    quick=("${few[@]}" --warmup 1)
    uncaptured=(eager)
    compiled=(compiled)
    profiled=(eager)
    around=(--starts 1 --test-images 16 --startup train.batch_size=8 train.eval_batch_size=500)
else
    game=(method=mosaic teacher=wrn40_2 student=wrn16_1 train.batch_size=256 device=cuda
        tracker=none)
    few=()
    quick=()
    uncaptured=(eager graph)
    compiled=(compiled compiled_graph)
    profiled=(eager graph)
    around=(--reference-style)
fi

# --------------------------------------------------------------------------------------- parts

failed=0

# part NAME LIMIT COMMAND...: run it for at most LIMIT seconds, or those that are left.
part() {
    local name="$1" limit="$2" left=$((budget - (SECONDS - begun))) start=$SECONDS code
    shift 2
    [[ " ${parts[*]} " == *" $name "* ]] || return 0
    # A rehearsal asks whether every part runs, not how fast.
    if $rehearse || ((limit > left)); then limit=$left; fi
    if ((limit < 10)); then
        say "$(printf '%-10s FAILED  no time left' "$name")"
        failed=1
        return 0
    fi
    rm -f "$out/$name.json"
    echo "==== $name: $*" >> "$log"
    timeout -s INT -k 15 "$limit" "$@" >> "$log" 2>&1
    code=$?
    if ((code == 0)); then
        say "$(printf '%-10s passed  %4d s' "$name" $((SECONDS - start)))"
    elif ((code == 124 || code == 137)); then
        say "$(printf '%-10s FAILED  ran out of its %d s' "$name" "$limit")"
        failed=1
    else
        say "$(printf '%-10s FAILED  %4d s, exit code %d' "$name" $((SECONDS - start)) "$code")"
        failed=1
    fi
}

versions() {
    date -u +"%Y-%m-%d %H:%M UTC"
    "$python" -c "
import torch
from mosaickd.launch import versions
print(versions() | {'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version()})"
    if command -v nvidia-smi > /dev/null; then
        nvidia-smi --format=csv --query-gpu=name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,power.limit,temperature.gpu
    fi
    echo "$(getconf _NPROCESSORS_ONLN) cores, load $(cut -d' ' -f1-3 /proc/loadavg)"
    $rehearse || "$python" -c "import torch; assert torch.cuda.is_available(), 'no CUDA device'"
}

cuda_tests() {
    local files processes=()
    files="$(grep -rl "mark.cuda" tests --include='test_*.py')"
    # Each test starts processes that import torch, one after the other: several at a time if we can.
    if "$python" -c "import xdist" 2> /dev/null; then processes=(-n "${TEST_PROCESSES:-4}"); fi
    # The project's own addopts name plugins that may not be here.
    # shellcheck disable=SC2086
    "$python" -m pytest -o addopts= -p no:cacheprovider -m cuda -v -ra --strict-markers \
        "${processes[@]}" $files > "$out/tests.log" 2>&1
    local code=$?
    tail -n 15 "$out/tests.log"
    return "$code"
}

export -f cuda_tests
export python out

if [[ " ${parts[*]} " == *" versions "* ]]; then
    versions 2>&1 | tee -a "$summary"
    ((PIPESTATUS[0] == 0)) || { say "versions   FAILED"; failed=1; }
fi
part step 120 "$python" -m benchmarks.step --reference-style --modes "${uncaptured[@]}" \
    "${quick[@]}" --json "$out/step.json" "${game[@]}"
part profile 75 "$python" -m benchmarks.profile --modes "${profiled[@]}" "${few[@]}" \
    --json "$out/profile.json" "${game[@]}"
baseline=()
[[ -s "$out/step.json" ]] && baseline=(--baseline "$out/step.json")
# On CUDA the teacher sees all student steps' images at once unless it is told otherwise.
part at_once 75 "$python" -m benchmarks.step --modes "${uncaptured[@]}" "${quick[@]}" \
    "${baseline[@]}" --json "$out/at_once.json" "${game[@]}" method.teacher_at_once=false
part compiled 210 "$python" -m benchmarks.step --reference-style --modes "${compiled[@]}" \
    "${quick[@]}" --json "$out/compiled.json" "${game[@]}"
part pipeline 90 "$python" -m benchmarks.pipeline "${few[@]}" "${around[@]}" \
    --json "$out/pipeline.json" "${game[@]}"
part tests 600 bash -c cuda_tests

# -------------------------------------------------------------------------------------- summary

"$python" - "$out" << 'END' | tee -a "$summary"
import json, sys
from pathlib import Path

for name in ("step", "compiled", "at_once"):
    path = Path(sys.argv[1], f"{name}.json")
    if not path.exists():
        continue
    result = json.loads(path.read_text())
    print(f"{name} ({result['device']}):")
    for mode, row in result["modes"].items():
        if "error" in row:
            print(f"  {mode:15} {row['error'][:150]}")
            continue
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "-"
        print(f"  {mode:15} {row['seconds_per_iteration']:.5f} s/iteration, reference/this {ratio}, "
              f"{row['share_of_peak']:.1%} of peak, {row['share_of_floor']:.1%} of floor")
END
say "$((SECONDS - begun)) s in all"
if ((failed)); then say "FAILED, see above"; else say "all parts passed"; fi
exit "$failed"
