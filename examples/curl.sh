#!/usr/bin/env bash
# The HTTP API with curl alone: the models, an answer, a stream, prompt log-probabilities.
#
#   examples/curl.sh http://127.0.0.1:8000
#
# With keys in the deployment, add: -H "Authorization: Bearer $KEY"
set -euo pipefail
readonly GATEWAY=${1:-http://127.0.0.1:8000}

post() { curl --silent --show-error --fail-with-body --no-buffer "$GATEWAY$1" --json "$2"; }

curl --silent --show-error --fail "$GATEWAY/v1/models"
echo
post /v1/chat/completions \
    '{"model": "demo", "messages": [{"role": "user", "content": "add two numbers"}],
      "max_tokens": 16}'
echo
post /v1/chat/completions \
    '{"model": "demo", "messages": [{"role": "user", "content": "add two numbers"}],
      "max_tokens": 8, "stream": true, "stream_options": {"include_usage": true}}'
post /v1/completions \
    '{"model": "demo", "prompt": "def add(a, b):", "max_tokens": 0, "echo": true, "logprobs": 1}'
echo
