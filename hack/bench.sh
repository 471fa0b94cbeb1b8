#!/usr/bin/env bash
# Runs the benchmarks that match a regular expression and prints them as benchstat's table:
# hack/bench.sh REGEXP COUNT
set -euo pipefail
regexp=${1:-.} count=${2:-1}

out=$(mktemp)
trap 'rm -f "$out"' EXIT
go test -run '^$' -bench "$regexp" -benchmem -count "$count" -timeout 60m ./... | tee "$out" >&2
go tool benchstat "$out"
