"""Requests over a tiny random model, stepped at random through two runners that must agree."""

import random
import zlib
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.batch import Batch
from engine.bundles import gpu_ops
from engine.decoder import Decoder, kv_layout
from engine.graphs import CudaCapture, DecodeGraphs, called, captured_sizes
from engine.kv_pool import make_kv_pool
from engine.linear import cpu_linears
from engine.ops import Ops, plain_ops
from engine.resident_batch import ResidentBatch
from engine.resident_runner import ResidentRunner
from engine.runner import TorchRunner
from engine.sampler import Sampler
from engine.weights import expected_shapes
from kernels.cpu.attention import paged_attention
from kernels.cpu.rms_norm import rms_norm
from kernels.cpu.rope import rope_write
from kernels.cpu.silu_and_mul import silu_and_mul
from node.runner import Sampled, SampleRequest, SequenceStep, StepBatch
from tandem.model_config import ModelConfig, ModelDtype, RopeScaling
from tandem.sampling import SamplingParams

PAGE_SIZE = 4
NUM_PAGES = 60
MAX_LEN = 48
CONFIG = ModelConfig(
    architecture="Qwen3ForCausalLM",
    num_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=97,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=RopeScaling(kind="default", factor=1.0, original_max_position_embeddings=64),
    qkv_bias=True,
    output_bias=False,
    mlp_bias=False,
    qk_norm=True,
    tie_word_embeddings=True,
    sliding_windows=(None, 5),
    dtype="float32",
)


def _paged(
    q: torch.Tensor,
    pool: torch.Tensor,
    layer: int,
    batch: Batch,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    tables, starts = batch.block_tables, batch.query_starts
    return paged_attention(q, pool, layer, tables, starts, batch.positions, scale, window)


# The kernels of `cpu_ops` over tensors: rows that stay on a device are tensors.
INVARIANT = Ops(
    name="invariant",
    rms_norm=rms_norm,
    rope_write=rope_write,
    silu_and_mul=silu_and_mul,
    attention=_paged,
    make_linear=cpu_linears("invariant", torch.float32),
)
BUNDLES: dict[str, tuple[Ops, ModelDtype]] = {
    "plain": (plain_ops(), "float64"),
    "invariant": (INVARIANT, "float32"),
    "gpu": (gpu_ops("fast", "float32"), "float32"),
}
PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8),
    SamplingParams(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0),
    SamplingParams(temperature=0.7, top_p=0.8),
    SamplingParams(temperature=0.0, repetition_penalty=1.4),
    SamplingParams(temperature=0.0, logprobs=2),
)


def make_runners(bundle: str, max_rows: int) -> tuple[TorchRunner, ResidentRunner]:
    """The plain runner and a resident one over a pool of its own; the same weights."""
    ops, dtype = BUNDLES[bundle]
    device = torch.device("cuda" if bundle == "gpu" else "cpu")
    torch.manual_seed(0)
    weights = {
        name: torch.randn(shape).mul_(0.3).to(device, getattr(torch, dtype))
        for name, shape in expected_shapes(CONFIG).items()
    }
    decoder = Decoder(CONFIG, weights, ops, 64)
    layout = kv_layout(CONFIG, PAGE_SIZE, dtype)
    sample = Sampler().sample
    pools = [make_kv_pool(layout, NUM_PAGES, device) for _ in "ab"]
    rows = ResidentBatch(max_rows, MAX_LEN // PAGE_SIZE, PAGE_SIZE, NUM_PAGES, device)
    plain, inner = (TorchRunner(decoder, pool, sample, device) for pool in pools)
    capture = CudaCapture(device) if bundle == "gpu" else called
    graphs = DecodeGraphs(decoder, pools[1].tensor, rows, captured_sizes(max_rows), capture)
    return plain, ResidentRunner(inner, decoder, sample, rows, graphs, device)


@dataclass(slots=True)
class Request:
    """A sequence with pages of its own; `num_computed` tokens have KV."""

    key: tuple[bytes, int]
    params: SamplingParams
    tokens: list[int]
    num_prompt: int
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0

    def step(self, num_new: int) -> SequenceStep:
        """Its next tokens; samples where they reach the end."""
        end = self.num_computed + num_new
        ids = np.array(self.tokens, np.int32)
        request = SampleRequest(
            params=self.params,
            seed=2**63 + zlib.crc32(self.key[0]),
            choice=1,
            output_index=len(self.tokens) - self.num_prompt,
            prompt_ids=ids[: self.num_prompt],
            output_ids=ids[self.num_prompt :],
            eos_token_ids=(0,),
            key=self.key,
        )
        return SequenceStep(
            ids[self.num_computed : end],
            self.num_computed,
            np.array(self.pages, np.int32),
            request if end == len(self.tokens) else None,
        )


class World:
    """Draws steps: new prompts in chunks, rows that decode, wait, move to other pages, end."""

    def __init__(self, seed: int, max_rows: int) -> None:
        self._random = random.Random(seed)
        self._max_rows = max_rows
        self._free = list(range(NUM_PAGES))
        self._requests: list[Request] = []
        self._num_made = 0

    def compose(self) -> list[tuple[Request, int]]:
        """Requests of the next step with how many tokens each computes; pages are taken."""
        random = self._random
        if len(self._requests) < self._max_rows and random.random() < 0.5:
            self._admit()
        for request in list(self._requests):
            if request.num_computed == len(request.tokens) - 1 and random.random() < 0.05:
                self._drop_pages(request)
            if len(request.tokens) >= MAX_LEN or random.random() < 0.03:
                self._drop_pages(request)
                self._requests.remove(request)
        picked = [r for r in self._requests if random.random() < 0.9]
        work = [(r, self._num_new(r)) for r in picked]
        if random.random() < 0.6:  # a step of decode rows alone
            work = [(r, n) for r, n in work if n == 1]
        return [(r, n) for r, n in work if self._has_pages(r, r.num_computed + n)]

    def computed(
        self, work: list[tuple[Request, int]], sampled: tuple[Sampled | None, ...]
    ) -> None:
        """Take what the step drew."""
        for (request, num_new), drawn in zip(work, sampled, strict=True):
            request.num_computed += num_new
            if drawn is not None:
                assert drawn.error is None
                request.tokens.append(drawn.token_id)

    def _has_pages(self, request: Request, num_tokens: int) -> bool:
        """Take what it lacks for so many tokens; False where there is not as much: it waits."""
        num_missing = -(-num_tokens // PAGE_SIZE) - len(request.pages)
        if num_missing > len(self._free):
            return False
        for _ in range(num_missing):
            request.pages.append(self._free.pop(self._random.randrange(len(self._free))))
        return True

    def _num_new(self, request: Request) -> int:
        return self._random.randint(1, min(7, len(request.tokens) - request.num_computed))

    def _admit(self) -> None:
        self._num_made += 1
        num_prompt = self._random.randint(1, 20)
        tokens = [self._random.randrange(97) for _ in range(num_prompt)]
        params = PARAMS[self._num_made % len(PARAMS)]
        key = (b"%d" % self._num_made, 1)
        self._requests.append(Request(key, params, tokens, num_prompt))

    def _drop_pages(self, request: Request) -> None:
        self._free += request.pages
        request.pages, request.num_computed = [], 0


def run_both(
    bundle: str, seed: int, num_steps: int, max_rows: int = 6
) -> tuple[TorchRunner, ResidentRunner]:
    """Compare what both draw in every step, and the pages that they leave."""
    plain, ours = make_runners(bundle, max_rows)
    world = World(seed, max_rows)
    chance = random.Random(seed)
    for _ in range(num_steps):
        work = world.compose()
        padding = (9, 1) if len(work) < 4 and chance.random() < 0.1 else ()
        batch = StepBatch(tuple(r.step(n) for r, n in work), padding)
        expected = plain.run(batch).sampled
        drawn = ours.run(batch).sampled
        if bundle == "invariant":
            assert drawn == expected
        else:  # products of other shapes: other last bits, the same tokens
            assert [s and s.token_id for s in drawn] == [s and s.token_id for s in expected]
        world.computed(work, expected)
    return plain, ours
