"""Flags under the names that users of vLLM and SGLang know: same meaning, or advice. Pure.

docs/cli.md lists them.
"""

from collections.abc import Iterator, Sequence

# Other names of settings that mean the same.
ALIASES = {
    "--block-size": "--page-size",
    "--num-gpu-blocks-override": "--num-pages",
    "--model-path": "--model",
    "--context-length": "--max-model-len",
}
# Settings of which there is one value; it is accepted, and nothing comes of it.
ONLY = {
    "--tensor-parallel-size": "1",
    "-tp": "1",
    "--pipeline-parallel-size": "1",
    "-pp": "1",
    "--data-parallel-size": "1",
    "-dp": "1",
    "--kv-cache-dtype": "auto",
}
ONLY_ADVICE = {
    "--kv-cache-dtype": "KV pages have the dtype of the weights (--dtype)",
}
ONE_DEVICE = (
    "a node is one process on one device; more nodes serve more (tandem up --prefill N --decode N)"
)
ALWAYS_ON = ("--enable-prefix-caching", "--enable-chunked-prefill")
ADVICE = {
    "--gpu-memory-utilization": "that is a share of the device for everything; --memory-share is "
    "the share of what is left after loading the weights that KV pages may take",
    "--mem-fraction-static": "that is a share of the device for everything; --memory-share is the "
    "share of what is left after loading the weights that KV pages may take",
    "--api-key": "keys are kept as digests, and never on a command line: tandem keys init KEYS; "
    "tandem keys bearer NAME --keys KEYS; then start with --keys KEYS",
    "--no-enable-prefix-caching": "prefixes are always cached, per tenant; give callers tenants of "
    "their own (--tenants) where they must not share them",
    "--no-enable-chunked-prefill": "prompts are always computed in chunks, of at most "
    "--max-num-batched-tokens",
    "--trust-remote-code": "code of a checkpoint is never run",
    "--swap-space": "give the bytes: --swap-bytes",
    "--scheduling-policy": "see --batch-policy and --prefill-policy",
    "--kv-transfer-config": "start nodes by role instead: tandem up --prefill N --decode N, or "
    "scripts/launch_prefill and scripts/launch_decode",
    "--disaggregation-mode": "start nodes by role instead: tandem up --prefill N --decode N, or "
    "scripts/launch_prefill and scripts/launch_decode",
    "--chat-template": "the checkpoint's own chat template is used",
    "--enforce-eager": "there are no captured graphs to turn off",
}


def translate(argv: Sequence[str], own: Sequence[str] = ()) -> list[str]:
    """The same flags by our names; `--max_model_len` is `--max-model-len`.

    `own` are flags of the program, which are left alone. Raises ValueError for a flag that means
    something else here, with what to give instead.
    """
    return list(_translated(argv, frozenset(own)))


def _translated(argv: Sequence[str], own: frozenset[str]) -> Iterator[str]:
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
        if flag in own or not flag.startswith("-"):
            yield flag + equals + value if flag.startswith("--") else word
        elif flag in ALIASES:
            yield ALIASES[flag] + equals + value
        elif flag in ONLY:
            _require_only(flag, value if equals else next(words, ""))
        elif flag in ADVICE:
            raise ValueError(f"{flag} does not exist here: {ADVICE[flag]}")
        elif flag not in ALWAYS_ON:
            yield flag + equals + value


def _require_only(flag: str, value: str) -> None:
    if value != ONLY[flag]:
        advice = ONLY_ADVICE.get(flag, ONE_DEVICE)
        raise ValueError(f"{flag} {value}: only {ONLY[flag]} is possible; {advice}")
