#!/usr/bin/env bash
# Builds the package: hack/package.sh deb|rpm VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?usage: hack/package.sh deb|rpm VERSION}
version=${2:?usage: hack/package.sh deb|rpm VERSION}

# A package version starts with a digit: v1.2.3-4-gabcdef becomes 1.2.3-4-gabcdef, a bare commit 0.0.0~abcdef.
version=${version#v}
case $version in
[0-9]*.*) ;;
*) version=0.0.0~$version ;;
esac

mkdir -p dist/man
for page in packaging/man/*.1; do
  gzip -n9c "$page" > "dist/man/$(basename "$page").gz"
done
# Two builds of one commit are the same bytes.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH PACKAGE_VERSION=$version ARCH=${ARCH:-$(go env GOARCH)}
go tool -modfile=tools/go.mod nfpm package --config packaging/nfpm.yaml --packager "$kind" --target dist/
