#!/usr/bin/env bash
# A fleet of TPUs in Google Cloud: create, status, recreate-preempted, delete, list. See
# docs/tpu.md.
#
#   ./scripts/manage_tpus.sh create --zones us-central1-a,us-central1-b --workers_per_zone 4
#
# This is `layertap tpu`, run by the Python in PYTHON, else of an active virtual environment, else
# of .venv beside this folder, else by python3.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    if [[ -z ${VIRTUAL_ENV:-} && -x $root/.venv/bin/python ]]; then
        PYTHON=$root/.venv/bin/python
    fi
fi
exec "$PYTHON" -m layertap tpu "$@"
