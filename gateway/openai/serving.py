"""What chats and completions do alike: enter the ledger, stream, answer a repeated call once."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gateway.admission import Rejected
from gateway.http.call import call_of
from gateway.http.errors import explain
from gateway.http.responses import json_response
from gateway.http.services import Services, Stream
from gateway.http.sse import SseResponse
from gateway.openai import choices
from gateway.openai.chunks import Head, Shape, Tally
from gateway.openai.idempotency import RepeatedCalls
from gateway.openai.logprobs import TokenNames
from gateway.openai.parameters import check_common
from gateway.openai.reading import Reader
from gateway.openai.requests import GenerationRequest
from gateway.openai.targets import Targets, targets_of
from gateway.openai.telling import Chunks, Telling, Told, frames
from gateway.openai.unsupported import IgnoredFields, refuse_unsupported
from tandem.frames import TokenIds
from tandem.messages.client import Submit
from tandem.sampling import SamplingParams

# A refusal that comes within so long is told by its status; then the stream begins without tokens.
SETTLE_S = 5.0
ID_BYTES = 16  # of a request's id
IDEMPOTENCY_HEADER = "idempotency-key"
Make = Callable[[], Awaitable[msgspec.Struct]]


class Running:
    """A call whose answer several callers may wait for; without any it is cancelled."""

    def __init__(self, make: Make, forget: Callable[[], None]) -> None:
        """`forget` is called at once where there is no answer to give to another caller."""
        self._task = asyncio.create_task(_encoded(make))
        self._forget = forget
        self._num_waiting = 0

    async def answer(self) -> bytes:
        """The encoded answer. Raises what the call raises."""
        self._num_waiting += 1
        try:
            return await asyncio.shield(self._task)
        except BaseException:
            if self._num_waiting == 1 or self._task.done():
                self._forget()
                self._task.cancel()
            raise
        finally:
            self._num_waiting -= 1


@dataclass(frozen=True, slots=True)
class Generation:
    """What both endpoints share."""

    services: Services
    ignored: IgnoredFields = field(default_factory=IgnoredFields)
    repeated: RepeatedCalls[Running] = field(default_factory=RepeatedCalls)

    def check(self, body: GenerationRequest, request: Request) -> Targets:
        """What is checked of both, before any prompt is made into tokens. Raises ApiError."""
        refuse_unsupported(body)
        self.ignored.note(body)
        check_common(body, self.services.offer())
        targets, call = targets_of(body, request.headers), call_of(request)
        wanted = Submit(
            label="",
            sla_class=targets.sla_class,
            ttft_ms=targets.ttft_ms,
            tpot_ms=targets.tpot_ms,
            priority=targets.priority,
        )
        try:
            self.services.turn_away(wanted, call.key, call.num_body_bytes)
        except Rejected as rejected:
            raise explain(rejected) from None
        return targets

    def head(self, prefix: str) -> Head:
        """Of a new answer: its id is that of its first request, which `tandem explain` knows."""
        answer_id = f"{prefix}-{secrets.token_hex(ID_BYTES)}"
        return Head(answer_id, int(time.time()), self.services.offer().model)

    def shape(self, body: GenerationRequest, params: SamplingParams) -> Shape:
        """What is shown beside the text."""
        options = body.stream_options
        names = None
        if params.logprobs is not None:
            text, shows_all = self.services.text, body.skip_special_tokens is False
            names = TokenNames(
                text.token_bytes,
                lambda token_id: not (shows_all or text.decode([token_id])),
                as_ids=bool(body.return_tokens_as_token_ids),
            )
        return Shape(
            names=names,
            returns_token_ids=bool(body.return_token_ids),
            includes_usage=options is not None and bool(options.include_usage),
            has_continuous_usage=options is not None and bool(options.continuous_usage_stats),
        )

    def tell(
        self,
        request: Request,
        body: GenerationRequest,
        head: Head,
        params: SamplingParams,
        targets: Targets,
        prompts: Sequence[TokenIds],
        tally: Tally,
    ) -> Told:
        """Enter all choices of all prompts."""
        key = call_of(request).key
        submits = [
            Submit(
                label=f"{head.answer_id}-{number}-{choice}",
                prompt_ids=prompt,
                params=params,
                sla_class=targets.sla_class,
                ttft_ms=targets.ttft_ms,
                tpot_ms=targets.tpot_ms,
                priority=targets.priority,
                deadline_s=targets.deadline_s,
                choice=choice,
            )
            for number, prompt in enumerate(prompts)
            for choice in range(tally.num_choices)
        ]
        readers = [self._reader(body, params) for _ in submits]
        first_id = bytes.fromhex(head.answer_id[-2 * ID_BYTES :])

        def open_stream(submit: Submit) -> Stream:
            own_id = first_id if submit is submits[0] else None
            return self.services.open(submit, key, own_id)

        started = choices.start(open_stream, submits, tally.num_choices)
        return Telling(started, readers, tally)

    def _reader(self, body: GenerationRequest, params: SamplingParams) -> Reader:
        spelled_out = None
        if body.skip_special_tokens is False:
            spelled_out = partial(self.services.text.decode, skip_special_tokens=False)
        return Reader(
            params,
            frozenset(self.services.offer().defaults.eos_token_ids),
            includes_stop=bool(body.include_stop_str_in_output),
            spelled_out=spelled_out,
        )

    async def streamed(self, told: Told, chunks: Chunks) -> Response:
        """The answer as it comes. Raises ApiError for what failed before."""
        try:
            await told.settle(SETTLE_S)
        except BaseException:
            told.close()
            raise
        return SseResponse(
            frames(told, chunks),
            on_end=told.close,
            on_direct=lambda body: told.go_direct(body, chunks),
        )

    async def whole(self, request: Request, body: msgspec.Struct, make: Make) -> Response:
        """The answer at once; under an Idempotency-Key the same for each repeated call."""
        key = request.headers.get(IDEMPOTENCY_HEADER)
        if key is None:
            return json_response(await make())
        caller = call_of(request).key
        named = type(body).__name__.encode() + msgspec.json.encode(body)
        digest = hashlib.blake2b(named).digest()
        repeated, now = self.repeated, time.monotonic()
        running = repeated.find(caller, key, digest, now)
        if running is None:
            running = Running(make, lambda: repeated.forget(caller, key))
            repeated.enter(caller, key, digest, running, now)
        answer = await running.answer()
        repeated.finish(caller, key, len(answer))
        return Response(answer, media_type="application/json")


async def _encoded(make: Make) -> bytes:
    return msgspec.json.encode(await make())
