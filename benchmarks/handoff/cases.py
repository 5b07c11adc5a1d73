"""The models whose hand-offs are measured, and what they are asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.claims.systems import DEMO_MODEL
from benchmarks.options import Options
from loadgen.checkpoint import Shape, write_checkpoint

NUM_PROMPT = 8192
PAGE_SIZE = 16
FLOAT32_BYTES = 4
ROOM = 64  # tokens of a context beside the prompt
STREAM_TOKENS = 4000  # of each stream that keeps the decode node busy


@dataclass(frozen=True, slots=True)
class Case:
    """Prompts of these lengths, each so many times; `num_busy` of the first with a busy node."""

    name: str
    shape: Shape
    prompt_lens: tuple[int, ...]
    num_repeats: tuple[int, ...]
    num_busy: int = 0
    num_streams: int = 8

    @property
    def token_bytes(self) -> int:
        """KV of a token, float32."""
        head_dim = self.shape.hidden_size // self.shape.num_heads
        return 2 * self.shape.num_layers * self.shape.num_kv_heads * head_dim * FLOAT32_BYTES

    @property
    def page_bytes(self) -> int:
        """All layers of a page."""
        return PAGE_SIZE * self.token_bytes

    @property
    def node_args(self) -> tuple[str, ...]:
        """Pages for two of the longest prompts and for the streams."""
        longest = max(*self.prompt_lens, STREAM_TOKENS) + ROOM
        num_tokens = 2 * longest + self.num_streams * (STREAM_TOKENS + ROOM)
        return ("--max-model-len", str(longest), "--num-pages", str(num_tokens // PAGE_SIZE))


def _shape(hidden_size: int, num_layers: int, num_heads: int, intermediate_size: int) -> Shape:
    return Shape(
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads // 2,
        intermediate_size=intermediate_size,
        max_position_embeddings=16_384,
    )


LENGTHS = (1024, 2048, 4096, 8192)
FULL = (
    Case("43 M parameters", _shape(640, 8, 10, 1792), LENGTHS, (7, 5, 3, 3), num_busy=7),
    Case("90 M parameters", _shape(768, 12, 12, 2304), LENGTHS, (5, 3, 3, 1)),
)
QUICK = (
    Case("1 M parameters", _shape(128, 2, 4, 256), (256, 512), (2, 2), num_busy=2, num_streams=2),
)


def cases(options: Options) -> Sequence[Case]:
    """Small ones where it is to be quick."""
    return QUICK if options.quick else FULL


@contextmanager
def checkpoint(shape: Shape) -> Iterator[Path]:
    """A model folder with random weights, for as long as it is needed."""
    with TemporaryDirectory(prefix="tandem-bench-") as folder:
        model = Path(folder) / "model"
        write_checkpoint(model, shape, DEMO_MODEL)
        yield model
