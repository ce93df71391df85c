#!/usr/bin/env bash
# Asks a running server everything that a deployment can get wrong, and says which step failed.
#   deploy/smoke.sh http://127.0.0.1:8000 [TOKEN]
set -euo pipefail
url="${1:?the address of the server}" token="${2:-}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

ask() {  # path, then curl's options: the body on stdout, an error with the answer if it is none of 2xx
    local path="$1"
    shift
    curl --silent --show-error --fail-with-body --max-time 60 --header "Authorization: Bearer $token" "$@" "$url$path"
}
step() { printf '%-12s' "$1"; }

step ready && ask /v2/health/ready && echo
step metadata && dimensions="$(ask /v2/models/similarity | python3 -c 'import json, sys; print(json.load(sys.stdin)["inputs"][0]["shape"][1])')" && echo "$dimensions dimensions"
step request
python3 - "$dimensions" > "$folder/request.json" << 'END'
import json, sys
d = int(sys.argv[1])
print(json.dumps({"inputs": [{"name": "queries", "datatype": "FP32", "shape": [1, d], "data": [1.0] * d}], "parameters": {"k": 3}}))
END
ask /v2/models/similarity/infer --data "@$folder/request.json" && echo
step job
python3 - "$folder/body.npy" << 'END'
import struct, sys
header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }"
header += b" " * (-(len(header) + 11) % 64) + b"\n"
with open(sys.argv[1], "wb") as file:
    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + struct.pack("<6f", 1, 0, 0, 1, 1, 1))
END
job="$(ask '/v1/jobs?kind=top_k&k=1' --data-binary "@$folder/body.npy" --header "Idempotency-Key: smoke-$$-$(date +%s)" \
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')"
for _ in $(seq 300); do
    state="$(ask "/v1/jobs/$job" | python3 -c 'import json, sys; print(json.load(sys.stdin)["state"])')"
    case "$state" in queued | running) sleep 0.2 ;; *) break ;; esac
done
echo "$job $state"
[ "$state" = "done" ]
step result && ask "/v1/jobs/$job/result" --output "$folder/result.npz" && echo "$(wc -c < "$folder/result.npz") bytes"
step metrics && ask /metrics | grep -c '^altlas_'
if command -v nvidia-smi > /dev/null; then step gpu && nvidia-smi --query-gpu=name,memory.used --format=csv,noheader; fi
echo "all well"
