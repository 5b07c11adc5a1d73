"""Other people's checks of a server: llm-comply's, and schemathesis' odd calls."""

import json
import subprocess
import tempfile
from pathlib import Path

from scripts.clients_test.environments import Environment

Results = list[tuple[str, str | None]]
LIMIT_S = 7200
# An image needs a model that sees; llm-comply's check of reasoning skips all models but OpenAI's.
NOT_SERVED = ("chat-image-input", "chat-reasoning-summary")
# 503 and 504 are answers: no capacity now, and a deadline that has passed.
SETTINGS = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
"""


def run_llm_comply(environment: Environment, gateway: str) -> Results:
    """Its checks of an OpenAI-compatible chat, but for what no text model answers."""
    flags = ["-u", f"{gateway}/v1", "-k", "none", "-m", "demo", "--format", "openai-chat"]
    command = [str(environment.program("llm-comply")), "run", *flags, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if not done.stdout.strip():
        return [("run", done.stderr[-300:])]
    results: Results = []
    for result in json.loads(done.stdout)["results"]:
        if result["id"] not in NOT_SERVED:
            is_good = result["status"] == "passed"
            why = None if is_good else "; ".join(result.get("errors", [result["status"]]))
            results.append((result["id"], why))
    return results


def run_schemathesis(environment: Environment, gateway: str, num_cases: int) -> Results:
    """So many odd calls of every endpoint of /openapi.json: no 5xx but 503 and 504."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "schemathesis.toml").write_text(SETTINGS)
        command = [
            str(environment.program("schemathesis").absolute()),
            *("run", f"{gateway}/openapi.json", "--url", gateway),
            *("--checks", "not_a_server_error", "--phases", "coverage,fuzzing"),
            *("--max-examples", str(num_cases), "--request-timeout", "60", "--seed", "1"),
            *("--continue-on-failure", "--suppress-health-check", "all"),
        ]
        done = subprocess.run(
            command,
            cwd=folder,  # it leaves a folder of its own
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    if done.returncode == 0:
        return [("no server error", None)]
    return [("no server error", done.stdout[-1500:] or done.stderr[-1500:])]
