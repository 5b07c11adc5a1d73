"""What clients must get: the one right answer to every prompt, and who may end how."""

import random
from dataclasses import dataclass, field

import numpy as np

from node.fake_runner import fake_token
from simulator.clock import Violation
from simulator.knobs import Knobs
from tandem.messages.client import Done, Output
from tandem.sampling import SamplingParams

EOS = 7


@dataclass(slots=True)
class Request:
    """One request of a client, and what the client has of its answer."""

    number: int
    prompt: tuple[int, ...]
    max_tokens: int
    submit_at: float
    deadline_s: float | None = None
    cancel_at: float | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    expected: tuple[int, ...] = ()
    reason: str = "length"
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    done: Done | None = None
    refused: str | None = None
    is_cancelled: bool = False
    is_lost: bool = False  # its client hung up, or its gateway died, for good
    ended_at: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the client waits for nothing any more."""
        return self.done is not None or self.refused is not None or self.is_lost

    def take(self, output: Output) -> None:
        """Invariant 1: what comes next, once, in order, and right."""
        if self.done is not None:
            raise Violation(f"I2: request {self.number} goes on after its end")
        if output.index != len(self.tokens):
            raise Violation(
                f"I1: request {self.number} has {len(self.tokens)} tokens and got "
                f"{len(output.token_ids)} from index {output.index}"
            )
        self.tokens += output.token_ids
        self.text += output.text
        if tuple(self.tokens) != self.expected[: len(self.tokens)]:
            raise Violation(
                f"I1/I5: request {self.number} got {self.tokens}, right is {self.expected}"
            )
        if not letters(self.expected).startswith(self.text):
            raise Violation(f"I1: the text of request {self.number} is {self.text!r}")

    def compare(self, output: Output) -> None:
        """What comes again is what came before."""
        end = output.index + len(output.token_ids)
        if tuple(output.token_ids) != self.expected[output.index : end]:
            raise Violation(f"I1: request {self.number} heard another answer: {output}")

    def finish(self, done: Done, now: float) -> None:
        """Invariants 2 and 13: one end, and an honest one."""
        if self.done is not None:
            raise Violation(f"I2: request {self.number} ended twice")
        self.done, self.ended_at = done, now
        if done.usage.num_output_tokens != len(self.tokens):
            raise Violation(f"I13: {done.usage} after {len(self.tokens)} tokens")
        is_whole = tuple(self.tokens) == self.expected
        if done.reason in ("stop", "length"):
            if not is_whole or done.reason != self.reason:
                raise Violation(
                    f"I13: request {self.number} ended by {done.reason} with {self.tokens}; right "
                    f"is {self.reason} with {self.expected}"
                )
            if self.text != letters(self.expected):
                raise Violation(f"I13: the text of request {self.number} is {self.text!r}")
        elif done.reason == "cancelled":
            if not self.is_cancelled:
                raise Violation(f"I13: request {self.number} was cancelled by nobody: {done}")
        elif done.code is None or not done.message:
            raise Violation(f"I13: request {self.number} failed without saying why: {done}")


def letters(ids: tuple[int, ...] | list[int]) -> str:
    """The text of token ids: one letter each, none for the end."""
    return "".join(chr(ord("a") + i % 26) for i in ids if i != EOS)


def answer(prompt: tuple[int, ...], max_tokens: int, vocab_size: int) -> tuple[int, ...]:
    """The right tokens: each a hash of all before it."""
    history = list(prompt)
    for _ in range(max_tokens):
        history.append(fake_token(np.array(history, np.int32), vocab_size))
        if history[-1] == EOS:
            break
    return tuple(history[len(prompt) :])


def make_requests(knobs: Knobs, rng: random.Random) -> list[Request]:
    """The load of a scenario."""
    requests = []
    for number in range(knobs.num_requests):
        submit_at = rng.uniform(0.5, knobs.safety_s * 0.9)
        requests.append(make_request(number, submit_at, knobs, rng))
    if "client" in knobs.faults:
        for request in requests:
            if rng.random() < 0.3:
                request.cancel_at = request.submit_at + rng.expovariate(1.0)
            if rng.random() < 0.15:
                request.deadline_s = rng.uniform(0.2, 8.0)
    return requests


def make_request(number: int, submit_at: float, knobs: Knobs, rng: random.Random) -> Request:
    """One request; those of a family share the beginning of their prompts."""
    family = rng.randrange(knobs.num_families)
    beginning = random.Random(f"family {knobs.seed} {family}")
    size = rng.randint(1, knobs.max_prompt)
    shared = [beginning.randrange(knobs.vocab_size) for _ in range(knobs.max_prompt * 2 // 3)]
    own = [rng.randrange(knobs.vocab_size) for _ in range(size)]
    prompt = tuple((shared + own)[:size])
    max_tokens = rng.randint(1, knobs.max_output)
    expected = answer(prompt, max_tokens, knobs.vocab_size)
    return Request(
        number=number,
        prompt=prompt,
        max_tokens=max_tokens,
        submit_at=submit_at,
        params=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        expected=expected,
        reason="stop" if expected[-1] == EOS else "length",
    )
