#!/usr/bin/env bash
# The tests with every supported Python and JAX, each pair in an environment of its own under .venv/matrix.
#   bash .ci/test_matrix.sh                     # all: 3.11 and 3.12, with 0.10.2
#   PYTHONS=3.12 JAXES=0.10.2 bash .ci/test_matrix.sh tests/attention
# jax 0.10.0 does not say of which platform a mesh is whose devices are not here (`AbstractDevice.platform`). With 0.10.1 the
# names of the GPU kernels are not found in what XLA's CUDA compiler writes (tests/attention/test_gpu_compiled.py).
# Python 3.13 is not supported: labmaze, which dm-control needs, has no wheel for it and is built by Bazel alone.
set -euo pipefail
cd "$(dirname "$0")/.."

interpreter() { # the path of Python $1: on the PATH, or pyenv's newest
    if "python$1" -c "" 2>/dev/null; then
        command -v "python$1"
    elif command -v pyenv >/dev/null && prefix="$(pyenv prefix "$(pyenv latest "$1")" 2>/dev/null)"; then
        echo "$prefix/bin/python"
    else
        echo "Python $1 is not here; install it, or choose others: PYTHONS=3.11 make test-matrix" >&2
        return 1
    fi
}

failed=()
for python in ${PYTHONS:-3.11 3.12}; do
    path="$(interpreter "$python")"
    for jax in ${JAXES:-0.10.2}; do
        echo "== Python $python, jax $jax"
        place=".venv/matrix/python$python-jax$jax"
        mkdir -p "$place"
        sed -E "s/^(jax|jaxlib|jax-cuda13-pjrt|jax-cuda13-plugin)==.*/\1==$jax/" constraints.txt >"$place/constraints.txt"
        test -x "$place/bin/python" || "$path" -m venv "$place"
        "$place/bin/python" -m pip install --quiet --disable-pip-version-check \
            -c "$place/constraints.txt" -e ".[dev,plan,plan-gpu,video]"
        OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/bin/python" -m pytest -q -n "${WORKERS:-2}" --dist loadfile \
            -m "not slow" "$@" || failed+=("$python with jax $jax")
    done
done
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}" >&2; exit 1; }
