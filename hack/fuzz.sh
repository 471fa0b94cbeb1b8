#!/usr/bin/env bash
# Runs every fuzz target for the time given, one after the other: hack/fuzz.sh 2m
set -euo pipefail
time=${1:?usage: hack/fuzz.sh DURATION}

go list -f '{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}{{"\n"}}{{end}}' ./... |
  while read -r package file; do
    [ -n "${file:-}" ] || continue
    sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file" | while read -r target; do
      echo "== $package $target"
      go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 20x "$package" </dev/null
    done
  done
