#!/bin/sh
# Talk to `raylaunch serve` with curl: SGLang's /generate, OpenAI's /v1/completions, a stream, health and metrics.
#
#     raylaunch serve configs/tiny-cpu.yaml &
#     sh examples/client_curl.sh [http://127.0.0.1:30000]
set -eu
url="${1:-http://127.0.0.1:30000}"
# Arguments that hold the key would be seen by every user of the machine: curl reads it from a here-document instead.
ask() {
    curl --silent --show-error --fail-with-body --config - "$@" <<CONFIG
header = "Authorization: Bearer ${RAYLAUNCH_API_KEY:-none}"
header = "Content-Type: application/json"
CONFIG
    echo
}

ask "$url/health_generate"
ask "$url/generate" --data '{"text": "12+30=", "sampling_params": {"max_new_tokens": 8}}'
ask "$url/v1/completions" --data '{"model": "tiny-adder", "prompt": ["7+8=", "99+99="], "max_tokens": 8}'
ask "$url/v1/completions" --no-buffer --data '{"model": "tiny-adder", "prompt": "99+1=", "max_tokens": 8, "stream": true}'
ask "$url/v1/chat/completions" --data '{"messages": [{"role": "user", "content": "What is 12 + 30?"}], "temperature": 0}'
ask "$url/metrics" | grep -i 'tokens_total'
