# shellcheck shell=bash disable=SC2034 # its variables are read by the scripts that source it
# Sourced by the scripts of this folder: where things live, and how to say what is missing.

# Callers run with `set -euo pipefail`.
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$(realpath -m "${CALLREEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/callreel}")
tools=$cache/tools
livekit_version=v1.13.5
livekit_dir=$tools/livekit-server-$livekit_version
versitygw_version=v1.8.0
versitygw_dir=$tools/versitygw-$versitygw_version
minio_version=v0.0.0-20260212201848-7aac2a2c5b7c
minio_dir=$tools/minio-$minio_version
azurite_version=3.35.0
azurite_dir=$tools/azurite-$azurite_version
helm_version=v3.22.0
helm_dir=$tools/helm-$helm_version
cargo_deny_version=0.20.2
cargo_deny_dir=$tools/cargo-deny-$cargo_deny_version

say() {
    printf '%s\n' "$*" >&2
}

die() {
    say "${0##*/}: $*"
    exit 1
}

# need PROGRAM WHAT-TO-INSTALL
need() {
    command -v "$1" >/dev/null || die "$1 is missing: install $2"
}

# venv_dir NAME: the folder of the virtual environment that holds exactly tools/NAME.txt
venv_dir() {
    local digest
    digest=$(sha256sum "$repo/tools/$1.txt")
    printf '%s/%s-%s\n' "$tools" "${1/requirements/python}" "${digest:0:12}"
}

# quality_dir: the folder of the virtual environment that holds exactly tools/quality/requirements.txt
quality_dir() {
    local digest
    digest=$(sha256sum "$repo/tools/quality/requirements.txt")
    printf '%s/python-quality-%s\n' "$tools" "${digest:0:12}"
}
