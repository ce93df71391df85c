#!/usr/bin/env bash
# Runs the Dockerfile's steps for the CPU image without a registry or a container daemon, then asks the server inside. As root, on
# Debian: apt install debootstrap buildah curl. Takes some minutes and 4 GB under the folder for temporary files.
set -euo pipefail
cd "$(dirname "$0")/.."

work="$(mktemp -d)"
store=(--root "$work/containers" --runroot "$work/run" --storage-driver vfs)
cleanup() {
    [ -z "${server:-}" ] || kill "$server" 2> /dev/null || true
    buildah "${store[@]}" rm --all > /dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/debian" > "$work/debootstrap.log"
printf 'FROM scratch\nCOPY debian /\n' > "$work/Dockerfile"
buildah "${store[@]}" bud --isolation chroot -t debian-python "$work"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > "$work/pip.conf"  # of this host, which may have its own
buildah "${store[@]}" bud --isolation chroot --file deploy/Dockerfile --target serve --build-arg BASE=localhost/debian-python \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro --volume "$work/pip.conf:/etc/pip.conf:ro" -t altlas-serve:cpu .

container="$(buildah "${store[@]}" from altlas-serve:cpu)"
mounted="$(buildah "${store[@]}" mount "$container")"
du -sh "$mounted"
[ "$(buildah "${store[@]}" inspect --format '{{.OCIv1.Config.User}}' "$container")" = "10001:10001" ]
mkdir -p "$work/data"
buildah "${store[@]}" run --isolation chroot --volume "$work/data:/data" --user 0 "$container" -- \
    python -c 'import numpy; numpy.save("/data/corpus.npy", numpy.random.default_rng(0).random((1000, 64), numpy.float32))'
port="$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')"
buildah "${store[@]}" run --isolation chroot --volume "$work/data:/data:ro" "$container" -- \
    altlas serve --host 127.0.0.1 --port "$port" --store /store --corpus /data/corpus.npy > "$work/server.log" 2>&1 &
server=$!
for _ in $(seq 120); do
    if curl --silent --fail "http://127.0.0.1:$port/v2/health/ready" > /dev/null; then break; fi
    kill -0 "$server" || { cat "$work/server.log"; exit 1; }
    sleep 1
done
deploy/smoke.sh "http://127.0.0.1:$port"
