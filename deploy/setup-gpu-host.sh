#!/usr/bin/env bash
# Makes a Debian or Ubuntu host with an NVIDIA GPU ready for this project: the driver, Docker's access to the GPU, and a check.
#   sudo deploy/setup-gpu-host.sh [--dry-run] [--no-driver]
# What is there already is left as it is; --dry-run prints every command and runs none. Repositories: the distribution's own for the
# driver and Docker, NVIDIA's for the container toolkit (https://docs.nvidia.com/datacenter/cloud-native/container-toolkit).
set -euo pipefail

dry_run=false driver=true
for option in "$@"; do
    case "$option" in
        --dry-run) dry_run=true ;;
        --no-driver) driver=false ;;
        *) echo "unknown option $option; expected --dry-run, --no-driver" >&2; exit 2 ;;
    esac
done

say() { printf '%s\n' "$*"; }
run() {  # a command, said before it is run
    say "+ $*"
    "$dry_run" || "$@"
}
has() { command -v "$1" > /dev/null 2>&1; }

# shellcheck source=/dev/null
. /etc/os-release
case "$ID" in
    debian | ubuntu) ;;
    *) echo "this is $ID; expected debian or ubuntu. For others: https://docs.nvidia.com/datacenter/tesla/driver-installation-guide" >&2; exit 1 ;;
esac
if ! "$dry_run" && [ "$(id -u)" -ne 0 ]; then
    echo "expected root: run it by sudo, or with --dry-run" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive

say "== before"
if has lspci && ! lspci | grep -qi nvidia; then say "no NVIDIA GPU on the PCI bus: what follows is of no use here"; fi
if has nvidia-smi && nvidia-smi -L; then say "driver: there"; else say "driver: missing"; fi
if has nvidia-ctk; then say "container toolkit: there"; else say "container toolkit: missing"; fi
if has altlas; then altlas check || true; fi

say "== packages"
run apt-get update
run apt-get install --yes --no-install-recommends ca-certificates curl git gnupg make pciutils python3 python3-venv

say "== driver"
if ! "$driver" || (has nvidia-smi && nvidia-smi -L > /dev/null 2>&1); then
    say "left as it is"
elif [ "$ID" = ubuntu ]; then
    run apt-get install --yes --no-install-recommends ubuntu-drivers-common
    run ubuntu-drivers install --gpgpu
else
    sources="$(ls /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2> /dev/null || true)"
    # shellcheck disable=SC2086  # one word for each file
    if grep -qsE '[ ]non-free( |$)' $sources; then
        say "Debian's non-free packages: there"
    else
        # shellcheck disable=SC2086
        run sed -i -E '/^(deb|Components)/s/ main( .*)?$/ main contrib non-free non-free-firmware/' $sources
        run apt-get update
    fi
    run apt-get install --yes "linux-headers-$(uname -r)" nvidia-driver firmware-misc-nonfree nvidia-smi
fi

say "== containers"
has docker || run apt-get install --yes --no-install-recommends docker.io
if has nvidia-ctk; then
    say "left as it is"
else
    keys=/usr/share/keyrings/nvidia-container-toolkit.gpg repository=https://nvidia.github.io/libnvidia-container
    # In the inner shell, whose own $1 and $2 are meant. shellcheck disable=SC2016
    run sh -c 'curl -fsSL "$1/gpgkey" | gpg --dearmor --yes -o "$2"' sh "$repository" "$keys"
    run sh -c "echo 'deb [signed-by=$keys] $repository/stable/deb/\$(ARCH) /' > /etc/apt/sources.list.d/nvidia-container-toolkit.list"
    run apt-get update
    run apt-get install --yes nvidia-container-toolkit
fi
if grep -qs nvidia /etc/docker/daemon.json; then
    say "Docker knows NVIDIA's runtime"
else
    run nvidia-ctk runtime configure --runtime=docker
    run systemctl restart docker
fi

say "== after"
if "$dry_run"; then
    say "nothing was changed"
elif has nvidia-smi && nvidia-smi; then
    docker run --rm --gpus all nvidia/cuda:12.9.1-base-ubuntu24.04 nvidia-smi -L
    say "ready; in the project: make setup EXTRAS=dev,gpu,serve && .venv/bin/altlas check"
else
    say "the driver is installed but does not answer: restart the host, then run this again"
    exit 1
fi
