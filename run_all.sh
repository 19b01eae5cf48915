#!/usr/bin/env bash
# The whole study in one command, from a fresh machine (Python >= 3.11, nothing else) to the report.
#
#   ./run_all.sh               the miniature study, on a laptop without a GPU   about 40 minutes
#   ./run_all.sh --full        more seeds, whole tables, a map of worlds        about 10 hours
#   ./run_all.sh smoke         everything once at toy size                      about 10 minutes
#   ./run_all.sh paper         the paper's scale, on an 80 GiB GPU              days
#   ./run_all.sh paper --cluster slurm   its runs as jobs of a SLURM cluster   docs/cluster.md
#   ./run_all.sh test          style, unit tests, the smoke study               about half an hour
#   ./run_all.sh --list        what would run, and for how long; --help shows all options
#
# Rerunning is cheap: a ready environment is recognised, and --resume STUDY redoes nothing that is finished.
set -euo pipefail

# Paths that the caller gave stay his; everything else is relative to the repository.
for name in SAGA_RESULTS SAGA_DATA; do
    case "${!name:-}" in "" | /*) ;; *) export "$name=$PWD/${!name}" ;; esac
done
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { echo "$*" >&2; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for python in python3 python3.13 python3.12 python3.11; do
        if is_recent "$python"; then
            echo "$python"
            return
        fi
    done
    say "error: Python 3.11 or newer is needed, found $(python3 --version 2>&1 || true); install it from python.org or use conda (environment.yml)"
    exit 2
}

# --- 1. The environment (first time: about 5 minutes and 7 GB of disk; later: nothing)

# Install what pip is told to, its words in .venv/install.log, and show how far it is; $1 is what the result needs of the disk.
install() {
    "$python" -m pip install --disable-pip-version-check "${@:2}" >>.venv/install.log 2>&1 &
    local pip=$! shown=
    trap 'kill "$pip"; exit 130' INT TERM # a shell's background processes do not hear of Ctrl-C
    while kill -0 "$pip" 2>/dev/null; do
        sleep 2
        shown="  .venv: $(du -sm .venv | cut -f1) of about $1 MB"
        if [ -t 2 ]; then printf '\r%s' "$shown" >&2; fi
    done
    if [ -t 2 ]; then printf '\r%*s\r' "${#shown}" '' >&2; fi
    trap - INT TERM
    wait "$pip"
}

if [ "${SAGA_ENV:-}" = active ]; then
    python=python # whatever is activated, e.g. the conda environment of environment.yml
    is_recent "$python" || { say "error: the active environment has no Python 3.11 or newer"; exit 2; }
else
    python=.venv/bin/python
    stamp=.venv/made-from # written last: a broken installation is never taken for a ready one
    digest=$(cat requirements.lock pyproject.toml | cksum)
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$digest" ]; then
        planning=
        for argument in "$@"; do
            case "$argument" in
            -h | --help) cat saga_study/study/help.txt; exit ;; # needs no environment
            --list) planning=yes ;;
            esac
        done
        if [ "$planning" ]; then stamp=.venv/plans-from; fi
    fi
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$digest" ]; then
        base=$(find_python)
        if ! { { is_recent "$python" && "$python" -m pip --version >/dev/null 2>&1; } || "$base" -m venv .venv; }; then
            say "error: '$base -m venv .venv' failed; on Debian and Ubuntu: sudo apt install python3-venv"
            exit 2
        fi
        : >.venv/install.log
        if [ "$planning" ]; then
            say "installing what a plan needs into .venv (0.3 GB, half a minute, once)"
            done=
            packages=$(grep -iE '^(numpy|pandas|pillow|scipy|pyyaml|filelock|psutil)==' requirements.lock | cut -d' ' -f1)
            install 350 $packages && done=yes
        else
            say "making the environment in .venv (about 5 minutes and 7 GB, once)"
            if [ "$(uname)" = Linux ] && [ "${SAGA_TORCH:-}" != cpu ] && [ ! -e /proc/driver/nvidia ] && [ ! -e /dev/nvidiactl ]; then
                say "  no NVIDIA driver here: SAGA_TORCH=cpu ./run_all.sh would take a torch without CUDA, which saves about 5 GB"
            fi
            done=
            if [ "${SAGA_TORCH:-}" = cpu ]; then
                grep -vE '^(nvidia-|cuda-|triton)' requirements.lock >.venv/without-cuda.txt
                index=https://download.pytorch.org/whl/cpu
                install 2000 $(grep -E '^(torch|torchvision)==' requirements.lock) --index-url "$index" &&
                    install 2000 -r .venv/without-cuda.txt && install 2000 --no-deps -e . && done=yes
            else
                install 7000 -r requirements.lock && install 7000 --no-deps -e . && done=yes
            fi
        fi
        # JupyterLab shows this environment by its name, also one that is started elsewhere.
        if [ "$done" ] && [ ! "$planning" ]; then
            "$python" -m ipykernel install --sys-prefix --name saga-study --display-name "SAGA study" >>.venv/install.log 2>&1 || done=
        fi
        if [ ! "$done" ]; then
            tail -n 3 .venv/install.log >&2
            say "error: the packages could not be installed (all of it: .venv/install.log); mend it and run the same command again"
            exit 2
        fi
        echo "$digest" >"$stamp"
    fi
fi

# --- 2. The study: train missing runs in parallel, execute the notebooks, say where the report is
exec "$python" -m saga_study "$@"
