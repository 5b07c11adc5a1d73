"""Services that play a script: streams of words as a ledger would give them, a byte tokenizer.

Every prompt is answered with its own tokens backwards, one `Output` each, and numbers of choices.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.admission import Offer, Rejected, check_submit
from gateway.http.services import Evaluated, EvaluationAsked, FromLedger, Services, Take
from tandem.frames import TokenIds
from tandem.messages.client import Accepted, Done, Output, Refused, Submit
from tandem.messages.common import Timeline, TokenLogprobs, Usage
from tandem.sampling import GenerationDefaults

EOS = 0
OFFER = Offer(
    "demo", vocab_size=256, max_model_len=512, defaults=GenerationDefaults(eos_token_ids=(EOS,))
)
Script = Callable[[Submit], list[FromLedger]]


class ByteText:
    """Ids are bytes; 0 is special and called `<end>`."""

    def __init__(self) -> None:
        self.rendered: list[dict[str, object]] = []

    async def encode(self, text: str, *, add_special_tokens: bool) -> TokenIds:
        return TokenIds(text.encode())

    async def render(self, messages: Sequence[Mapping[str, object]], **options: object) -> TokenIds:
        self.rendered.append({"messages": list(messages), **options})
        return TokenIds("|".join(str(turn["content"]) for turn in messages).encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        pieces = [self._piece(each) for each in token_ids]
        if skip_special_tokens:
            pieces = [p for p, each in zip(pieces, token_ids, strict=True) if each != EOS]
        return b"".join(pieces).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self._piece(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self._piece(token_id)

    def _piece(self, token_id: int) -> bytes:
        return b"<end>" if token_id == EOS else bytes([token_id])


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    top = [(token_id, -0.5), ((token_id + 1) % 256, -1.5), ((token_id + 2) % 256, -2.5)]
    return TokenLogprobs(logprob=-0.5, top=tuple(top[:num_top]))


def backwards(submit: Submit) -> list[FromLedger]:
    """The prompt backwards, one token at a time; the number of the choice first."""
    ids = [48 + submit.choice, *reversed(submit.prompt_ids.array.tolist())]
    assert submit.params.max_tokens is None or submit.params.max_tokens > 0
    ids = ids[: submit.params.max_tokens]
    return [accepted(submit), *outputs(submit, ids), done(submit, len(ids))]


def saying(text: str, size: int = 3) -> Script:
    """This text, in tokens of bytes and pieces of `size` characters."""

    def script(submit: Submit) -> list[FromLedger]:
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        words: list[FromLedger] = [accepted(submit)]
        index = 0
        for piece in pieces:
            ids = tuple(piece.encode())
            words.append(Output(request_id=bytes(16), index=index, token_ids=ids, text=piece))
            index += len(ids)
        return [*words, done(submit, index)]

    return script


def accepted(submit: Submit) -> Accepted:
    return Accepted(
        label=submit.label,
        request_id=bytes(16),
        seed=1,
        model_fingerprint="0123456789abcdef0123",
        num_prompt_tokens=len(submit.prompt_ids),
    )


def outputs(submit: Submit, ids: Sequence[int]) -> list[Output]:
    num_top = submit.params.logprobs
    return [
        Output(
            request_id=bytes(16),
            index=index,
            token_ids=(each,),
            text="" if each == EOS else chr(each),
            logprobs=() if num_top is None else (logprobs_of(each, num_top),),
        )
        for index, each in enumerate(ids)
    ]


def done(submit: Submit, num_tokens: int, **fields: object) -> Done:
    usage = Usage(
        num_prompt_tokens=len(submit.prompt_ids), num_output_tokens=num_tokens, num_cached_tokens=2
    )
    fields = {"reason": "stop", "usage": usage, **fields}
    return Done(
        request_id=bytes(16),
        timeline=Timeline(received_unix_s=0.0),
        sla_class="standard",
        sla_attained=True,
        **fields,
    )


def failing(after: int = 0, **fields: object) -> Script:
    """Fails after so many tokens."""

    def script(submit: Submit) -> list[FromLedger]:
        failed = done(submit, after, reason="failed", **fields)
        return [*backwards(submit)[: 1 + after], failed]

    return script


@dataclass(slots=True)
class PlayedStream:
    """`gate`: tokens wait until it is open."""

    submit: Submit
    words: list[FromLedger]
    gate: asyncio.Event
    is_cancelled: bool = False

    def divert(self, take: Take) -> None:
        """Readers get all."""

    async def next(self) -> FromLedger:
        await asyncio.sleep(0)
        if isinstance(self.words[0], Output | Done):
            await self.gate.wait()
        return self.words.pop(0)

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass(slots=True)
class Played:
    """The services, and what was asked of them."""

    script: Script = backwards
    streams: list[PlayedStream] = field(default_factory=list)
    request_ids: list[bytes | None] = field(default_factory=list)
    evaluated: list[EvaluationAsked] = field(default_factory=list)
    text: ByteText = field(default_factory=ByteText)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    full_for_s: float | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def submits(self) -> list[Submit]:
        return [stream.submit for stream in self.streams]

    def open(
        self, submit: Submit, key: str | None, request_id: bytes | None = None
    ) -> PlayedStream:
        try:
            check_submit(submit, OFFER)
            words = self.script(submit)
        except Rejected as rejected:
            words = [Refused(label=submit.label, code=rejected.code, message=str(rejected))]
        self.request_ids.append(request_id)
        self.streams.append(PlayedStream(submit, words, self.gate))
        return self.streams[-1]

    def turn_away(self, submit: Submit, key: str | None, num_bytes: int) -> None:
        assert num_bytes > 0
        if self.full_for_s is not None:
            raise Rejected("overloaded", f"full for {submit.sla_class}", self.full_for_s)

    async def evaluate(self, asked: EvaluationAsked, *, key: str | None) -> Evaluated:
        self.evaluated.append(asked)
        ids = asked.prompt_ids.array.tolist()[asked.first_scored :]
        logprobs = tuple(logprobs_of(each, asked.num_top) for each in ids)
        return Evaluated(num_prompt_tokens=len(asked.prompt_ids), logprobs=logprobs)

    def services(self) -> Services:
        return Services(
            offer=lambda: OFFER,
            open=self.open,
            turn_away=self.turn_away,
            text=self.text,
            evaluate=self.evaluate,
            created_unix_s=1,
        )
