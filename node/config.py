"""Everything an operator may say about a node: one definition for flags, environment and file."""

from dataclasses import dataclass
from typing import Annotated, Literal

from node.growth import ReserveMode
from scheduling.batch.catalogue import BATCH_POLICIES
from scheduling.prefill.catalogue import PREFILL_POLICIES
from tandem.config import Help

Transport = Literal["auto", "shared_memory", "zmq", "cuda_ipc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """A node: prefill, decode or both, as its weights say."""

    model: Annotated[str, Help("model folder, or a Hub name to download")]
    name: Annotated[str | None, Help("node name, unique in the deployment; default: made up")] = (
        None
    )
    host: Annotated[str, Help("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Help("control port; 0 picks a free one")] = 0
    advertised_host: Annotated[
        str | None, Help("host that other machines reach this node by; default: host")
    ] = None
    coordinator: Annotated[str, Help("address of the coordinator")] = "tcp://127.0.0.1:7300"
    served_model_name: Annotated[
        str | None, Help("name that clients call the model by; default: the folder's name")
    ] = None
    device: Annotated[str, Help("cpu, cuda or cuda:N; fake computes nothing, for tests")] = "cpu"
    fake_step_s: Annotated[float, Help("how long a step of the fake device takes")] = 0.0
    fake_costs: Annotated[
        str | None,
        Help(
            "what a step of the fake device takes besides, in seconds per step, prefill token, "
            "prefill pair, decode row and decode token, like 0.004:0.0005:0:0.0005:0"
        ),
    ] = None
    fake_wedge_s: Annotated[
        float, Help("how long the fake device hangs in its next step after SIGUSR1")
    ] = 10.0
    dtype: Annotated[
        Literal["auto", "float64", "float32", "bfloat16", "float16"],
        Help("of weights and KV; auto: float32 on the CPU, else the checkpoint's"),
    ] = "auto"
    numerics: Annotated[
        Literal["auto", "invariant", "fast"],
        Help(
            "invariant: a token's bits do not depend on what shares its batch; auto: invariant on "
            "the CPU, fast on a GPU"
        ),
    ] = "auto"
    page_size: Annotated[int, Help("tokens of a KV page")] = 16
    num_pages: Annotated[int | None, Help("KV pages; default: what memory-share gives")] = None
    memory_share: Annotated[
        float, Help("share of the memory left after loading that KV pages may take")
    ] = 0.2
    max_model_len: Annotated[
        int | None, Help("longest prompt plus answer in tokens; default: the model's")
    ] = None
    cpu_threads: Annotated[
        int | None, Help("threads that share a step on the CPU; default: OMP_NUM_THREADS, else 1")
    ] = None
    max_num_seqs: Annotated[int, Help("requests decoded in one step at most")] = 64
    max_num_batched_tokens: Annotated[
        int | None,
        Help(
            "tokens of one step at most; the size of a prefill chunk; default: 512 on the CPU, "
            "2048 on a GPU"
        ),
    ] = None
    reserve: Annotated[
        ReserveMode,
        Help(
            "pages set aside for a request to grow: full (all that max_tokens may need), predicted "
            "(up to its predicted length), none; where they run out requests are preempted"
        ),
    ] = "full"
    page_watermark: Annotated[
        float, Help("share of the pages kept free of new requests, unless reserve is full")
    ] = 0.01
    preemption: Annotated[
        Literal["auto", "recompute", "swap"],
        Help("what becomes of a preempted request's pages; auto: what takes less time"),
    ] = "auto"
    swap_bytes: Annotated[
        int, Help("host memory for preempted requests' pages, of a node on the CPU; 0: none")
    ] = 2**30
    prefill_weight: Annotated[float, Help("share of prefill; 0 closes the role")] = 1.0
    decode_weight: Annotated[float, Help("share of decode; 0 closes the role")] = 1.0
    batch_policy: Annotated[
        str, Help(f"what composes a step: {', '.join(BATCH_POLICIES)}; see docs/scheduling.md")
    ] = "fifo"
    batch_option: Annotated[
        tuple[str, ...], Help("KEY=VALUE, an option of the batch policy or of its wrappers")
    ] = ()
    prefill_policy: Annotated[
        str, Help(f"order of prompts: {', '.join(PREFILL_POLICIES)}; see docs/scheduling.md")
    ] = "fifo"
    prefill_option: Annotated[
        tuple[str, ...], Help("KEY=VALUE, an option of the prefill policy or of its wrappers")
    ] = ()
    transport: Annotated[
        Transport,
        Help(
            "how KV leaves this node; auto: shared memory on one host, else zmq; from a GPU "
            "cuda_ipc, to GPUs of the same host"
        ),
    ] = "auto"
    run_dir: Annotated[
        str | None, Help("folder for Unix sockets; default: a private temporary one")
    ] = None
    drain_s: Annotated[
        float, Help("how long a drain (Ctrl-C, tandem drain) waits for requests to end or move")
    ] = 120.0
    keys: Annotated[
        str | None, Help("keys folder (tandem keys init); without it, loopback only")
    ] = None
    allow_unauthenticated: Annotated[
        bool, Help("listen beyond loopback although there are no keys")
    ] = False
    kv_events_port: Annotated[
        int | None,
        Help(
            "port to publish changes of the prefix cache on, in vLLM's format; 0 picks a free one; "
            "loopback only but with --allow-unauthenticated; default: none"
        ),
    ] = None
    event_log: Annotated[
        str | None, Help("file or folder to record every event and decision in, for scripts/replay")
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Help("least severe log lines shown")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Help("of log lines, on standard error")] = "text"

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if self.max_num_seqs < 1 or self.num_step_tokens < self.max_num_seqs:
            raise ValueError(
                f"max-num-seqs {self.max_num_seqs} must be at least 1 and at most "
                f"max-num-batched-tokens {self.num_step_tokens}"
            )
        if min(self.prefill_weight, self.decode_weight) < 0 or not (
            self.prefill_weight or self.decode_weight
        ):
            raise ValueError(
                "prefill-weight and decode-weight: one must be positive, none negative"
            )
        if self.transport == "cuda_ipc" and not self.device.startswith("cuda"):
            raise ValueError(f"--transport cuda_ipc is for GPUs, not for --device {self.device}")
        if self.cpu_threads is not None and self.cpu_threads < 1:
            raise ValueError(f"cpu-threads {self.cpu_threads} must be at least 1")
        if self.page_size < 1 or self.page_size & (self.page_size - 1):
            raise ValueError(f"page-size {self.page_size} is not a power of two; use 16")
        if not 0 <= self.page_watermark <= 0.5:
            raise ValueError(
                f"page-watermark {self.page_watermark} is not within [0, 0.5]; use 0.01"
            )
        if self.swap_bytes < 0:
            raise ValueError(f"swap-bytes {self.swap_bytes} is negative; 0 turns swapping off")
        if not 0 < self.memory_share <= 1:
            raise ValueError(f"memory-share {self.memory_share} is not within (0, 1]; use 0.2")

    @property
    def num_step_tokens(self) -> int:
        """Tokens of one step at most: fewer leave a GPU's products below their rate."""
        if self.max_num_batched_tokens is not None:
            return self.max_num_batched_tokens
        return 2048 if self.device.startswith("cuda") else 512
