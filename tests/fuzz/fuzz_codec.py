"""A fuzz target for the codec: nothing but `ProtocolError` may come out of a decoder.

    python -m tests.fuzz.fuzz_codec --seconds 60            the built-in loop, seeds 0, 1, 2, ...
    python -m tests.fuzz.fuzz_codec --seconds 60 --seed 7   another one; the same seed, the same run
    pip install atheris; python -m tests.fuzz.fuzz_codec --atheris CORPUS_FOLDER [libFuzzer flags]

With atheris the guide is the coverage of our Python code. The built-in loop needs nothing: what it
takes for coverage is how a decoder answers. An error's text names the field and the rule that it
broke, so each new text (numbers aside) is a new path; inputs that found one are kept and mutated
further. A failure prints the frames in hex. It also checks that whatever is accepted can be sent
again and reads the same.
"""

import argparse
import importlib
import random
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tandem.codec import Decoder, ProtocolError, encode
from tests.fuzz.wire_values import LINKS, mutate, valid_frames

DECODERS = {name: Decoder[Any](union) for name, union in LINKS.items()}
MAX_CORPUS = 5000
QUOTED = re.compile(r"0x[0-9a-f]+|[0-9]+|`[^$`]*`?|'[^']*'?")  # what an error quotes of its input


def answer(link: str, frames: list[bytes]) -> str:
    """How the link's decoder answers, as a feature. Raises what must not come out of it."""
    decoder = DECODERS[link]
    try:
        message = decoder.decode(frames)
    except ProtocolError as error:
        return QUOTED.sub("", str(error))
    again = decoder.decode(encode(message))
    if repr(again) != repr(message):
        raise AssertionError(f"{message!r} reads {again!r} when it is sent again")
    return type(message).__name__


@dataclass
class Corpus:
    """Inputs that showed something new, per link."""

    seed: int
    features: set[tuple[str, str]] = field(default_factory=set)
    num_inputs: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._kept = {
            link: [valid_frames(self._rng, union) for _ in range(30)]
            for link, union in LINKS.items()
        }

    def step(self) -> None:
        """One input, kept where it shows something new. Raises where a decoder misbehaves."""
        rng = self._rng
        link = rng.choice(list(LINKS))
        kept = self._kept[link]
        frames = mutate(rng.choice(kept), rng, rng.choice(kept))
        try:
            feature = (link, answer(link, frames))
        except Exception:
            print(f"{link}: {[frame.hex() for frame in frames]}", file=sys.stderr)
            raise
        self.num_inputs += 1
        if feature not in self.features:
            self.features.add(feature)
            if len(kept) < MAX_CORPUS:
                kept.append(frames)


def one_input(data: bytes) -> None:
    """For atheris: a byte names the link, the rest are length-prefixed frames."""
    if not data:
        return
    link = list(LINKS)[data[0] % len(LINKS)]
    frames, rest = [], data[1:]
    while len(rest) >= 2:
        size = int.from_bytes(rest[:2], "big")
        frames.append(rest[2 : 2 + size])
        rest = rest[2 + size :]
    answer(link, frames)


def main() -> int:
    """Exit status 0 where nothing was found; a finding ends it with its traceback."""
    if "--atheris" in sys.argv:
        sys.argv.remove("--atheris")
        atheris = importlib.import_module("atheris")
        atheris.instrument_all()
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
        return 0
    parser = argparse.ArgumentParser(description="Fuzz the codec.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    corpus, deadline = Corpus(args.seed), time.monotonic() + args.seconds
    while time.monotonic() < deadline:
        corpus.step()
    print(f"{corpus.num_inputs} inputs, {len(corpus.features)} different answers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
