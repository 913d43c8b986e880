#!/usr/bin/env bash
# Build, compare and time the TensorRT engines on this machine's GPU, beside PyTorch and ONNX Runtime:
#
#   benchmarks/gpu_check.sh [OUT.json]        by default benchmarks/results/gpu.json
#
#   PYTHON            interpreter with m2df[export], a CUDA PyTorch and, for its figure, onnxruntime-gpu
#   M2DF_GPU_RUNTIME  a folder with another interpreter that has TensorRT, and an `env.sh` in it that exports
#                     RUNTIME_PYTHON, LD_LIBRARY_PATH, PYTHONPATH (where PYTHON itself has no TensorRT, or an
#                     old TensorRT needs an old numpy). It needs numpy, and pycuda or cuda-bindings, besides.
#   M2DF_GPU_WORK     folder for exports and parts; a temporary one by default
#
# Exit codes: 0 done, 1 an engine failed, 3 no GPU or no TensorRT (with the reason).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
work=${M2DF_GPU_WORK:-}
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"

with_tensorrt() {
    if [ -z "${M2DF_GPU_RUNTIME:-}" ]; then
        "$PYTHON" -m benchmarks.gpu_engines "$@"
        return
    fi
    if [ ! -f "$M2DF_GPU_RUNTIME/env.sh" ]; then
        echo "error: $M2DF_GPU_RUNTIME: no env.sh (write there what unpacking the runtime printed)" >&2
        return 3
    fi
    (
        unset PYTHONHOME
        # shellcheck disable=SC1091
        . "$M2DF_GPU_RUNTIME/env.sh"
        export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
        [ -n "${RUNTIME_PYTHONHOME:-}" ] && export PYTHONHOME=$RUNTIME_PYTHONHOME
        "${RUNTIME_PYTHON:?env.sh does not set it}" -m benchmarks.gpu_engines "$@"
    )
}

"$PYTHON" -m benchmarks.gpu_check need
facts=$(with_tensorrt probe)
echo "$facts"
version=$(printf '%s' "$facts" | sed 's/.*"tensorrt": "\([^"]*\)".*/\1/')
"$PYTHON" -m benchmarks.gpu_check prepare "$work" "$version"
with_tensorrt run "$work"
"$PYTHON" -m benchmarks.gpu_check time "$work"
# The product's own path, where one interpreter has everything.
if [ -z "${M2DF_GPU_RUNTIME:-}" ]; then
    "$PYTHON" -m m2df_export.commands.export engines --bundle "$work/vit-b-16" --batch 1,1,64
fi
"$PYTHON" -m benchmarks.gpu_check merge "$work" "$facts" ${1:+"$1"}
