#!/usr/bin/env bash
# The contract's checks: style, generated code up to date, nothing broken since the last release of the contract.
set -euo pipefail
cd "$(dirname "$0")/.."
buf lint
buf format --diff --exit-code >/dev/null || { echo "proto files are not formatted: run 'buf format -w'" >&2; exit 1; }
python proto/generate.py --check
# proto/v1.binpb is the contract as last released (`buf build -o proto/v1.binpb` at a release).
buf breaking --against proto/v1.binpb
