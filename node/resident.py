"""One request attempt on a node: its tokens, its pages, how far its KV is computed."""

import math

import numpy as np

from node.runner import Int32Array, SampleRequest, SequenceStep
from scheduling.views import RequestKey, SequenceView
from tandem.messages.common import FinishReason
from tandem.messages.serving import RequestSpec

PREFIX_PAGES = 4  # that name a prefix: 64 tokens of usual pages; SGLang takes 32 tokens


class Resident:
    """Tokens and pages of an attempt. `peer` is the routing identity of its gateway.

    Token indices are absolute: `prompt + output`, where output includes what earlier attempts
    delivered. The KV of tokens below `num_computed` is in `pages`; `num_promised` further pages
    are set aside in the ledger for its growth. Of its prefix, `num_matched` tokens were cached when
    it last got pages, `num_cached` when it first did. A preemption that drops its KV leaves in
    `num_dropped` how many tokens that was of.
    """

    def __init__(self, spec: RequestSpec, *, peer: bytes, now: float, page_size: int) -> None:
        assert spec.params.max_tokens is not None
        self.spec = spec
        self.peer = peer
        self.key: RequestKey = (spec.request_id, spec.attempt)
        self.arrived_at = now
        self.num_prompt_tokens = len(spec.prompt_ids)
        self.num_tokens = self.num_prompt_tokens + len(spec.output_ids)
        self.last_token_id: int | None = None  # of those drawn here
        self.max_total_tokens = self.num_prompt_tokens + spec.params.max_tokens
        self.num_computed = 0
        self.num_cached = 0
        self.num_matched = 0
        self.num_promised = 0
        self.num_dropped = 0
        self.num_preemptions = 0
        self.preempted_at = 0  # how many tokens it had when it was preempted last
        self.is_begun = False  # some of its prompt was computed here
        self.last_token_at: float | None = None  # of its newest token, drawn here
        self.page_hashes: list[bytes] = []  # of its first full pages, extended as asked
        self._page_size = page_size
        self._ttft_s = spec.targets.ttft_ms / 1e3
        self._tpot_s = spec.targets.tpot_ms / 1e3
        self._ids: Int32Array = np.zeros(max(self.max_total_tokens, self.num_tokens), np.int32)
        self._ids[: self.num_prompt_tokens] = spec.prompt_ids.array
        self._ids[self.num_prompt_tokens : self.num_tokens] = spec.output_ids.array
        self._prompt_ids = self._ids[: self.num_prompt_tokens]
        self._table: Int32Array = np.zeros(-(-len(self._ids) // page_size), np.int32)
        self._block_table = self._table[:0]
        self._num_pages = 0
        self.num_page_tokens = 0  # that its pages have room for

    @property
    def token_ids(self) -> Int32Array:
        """Known tokens, prompt and output."""
        return self._ids[: self.num_tokens]

    @property
    def num_output_tokens(self) -> int:
        """Output tokens known so far, earlier attempts included."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def pages(self) -> list[int]:
        """Pages in token order."""
        pages: list[int] = self._table[: self._num_pages].tolist()
        return pages

    @property
    def num_pages(self) -> int:
        """Pages that it has."""
        return self._num_pages

    @property
    def num_missing_pages(self) -> int:
        """Pages that its next token needs beyond those it has (0 or 1 while decoding)."""
        return -(-self.num_tokens // self._page_size) - self._num_pages

    @property
    def num_final_pages(self) -> int:
        """Pages at full length; the KV of the last token is never needed."""
        return -(-max(self.max_total_tokens - 1, self.num_tokens) // self._page_size)

    @property
    def num_expected_pages(self) -> int | None:
        """Pages at the length that nine of ten such answers stay below; None: not predicted."""
        if self.spec.prediction is None:
            return None
        num_tokens = self.num_prompt_tokens + math.ceil(self.spec.prediction.q90)
        return -(-min(num_tokens, self.max_total_tokens) // self._page_size)

    def add_pages(self, pages: list[int]) -> None:
        """Append pages."""
        self._table[self._num_pages : self._num_pages + len(pages)] = pages
        self._set_num_pages(self._num_pages + len(pages))

    def match(self, num_pages: int) -> None:
        """Its first pages were cached before; what it filled before a preemption stays its own."""
        self.num_matched = num_pages * self._page_size
        if self.num_preemptions == 0:
            self.num_cached = self.num_matched

    def drop_pages(self) -> list[int]:
        """Give all pages away and forget what was computed."""
        pages = self.pages
        self._set_num_pages(0)
        self.num_computed = 0
        return pages

    def _set_num_pages(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._block_table = self._table[:num_pages]
        self.num_page_tokens = num_pages * self._page_size

    def append(self, token_id: int) -> None:
        """Add a sampled token."""
        self._ids[self.num_tokens] = token_id
        self.num_tokens += 1
        self.last_token_id = token_id

    def step(self, num_new: int, eos_token_ids: tuple[int, ...]) -> SequenceStep:
        """The next `num_new` tokens as work for the runner; samples when they reach the end."""
        # Made for every row of every step: arguments by place take half the time of named ones.
        begin, num_tokens = self.num_computed, self.num_tokens
        end = begin + num_new
        sample = None
        if end == num_tokens:
            spec, num_prompt = self.spec, self.num_prompt_tokens
            sample = SampleRequest(
                spec.params,
                spec.seed,
                spec.choice,
                num_tokens - num_prompt,
                self._prompt_ids,
                self._ids[num_prompt:num_tokens],
                eos_token_ids,
                self.key,
            )
        return SequenceStep(self._ids[begin:end], begin, self._block_table, sample)

    def view(self, *, num_set_aside: int = 0) -> SequenceView:
        """What policies see; so many pages are set aside for it beyond its promise."""
        spec, hashes = self.spec, self.page_hashes
        # In the order of its fields: named they would take a third longer.
        return SequenceView(
            self.key,
            spec.sequence,
            self.arrived_at,
            spec.priority,
            spec.tenant,
            self.num_prompt_tokens,
            self.num_tokens,
            self.num_computed,
            self.max_total_tokens,
            self._num_pages,
            self.num_promised + num_set_aside,
            spec.waited_s,
            self._ttft_s,
            self._tpot_s,
            spec.tenant_weight,
            self.last_token_at,
            self.num_preemptions,
            spec.prediction,
            self.is_begun,
            self.num_cached,
            hashes[PREFIX_PAGES - 1] if len(hashes) >= PREFIX_PAGES else None,
        )


def finish_reason(resident: Resident, eos_token_ids: tuple[int, ...]) -> FinishReason | None:
    """Whether the newest token ends the request: a stop token, or the length limit."""
    token_id = resident.last_token_id
    params = resident.spec.params
    ends = token_id in params.stop_token_ids
    ends = ends or (token_id in eos_token_ids and not params.ignore_eos)
    if ends and resident.num_output_tokens >= params.min_tokens:
        return "stop"
    return "length" if resident.num_tokens >= resident.max_total_tokens else None


MAX_CLOSED = 20_000  # requests whose ended attempts are remembered


class Attempts:
    """The highest attempt of each request that has ended here; bounded, oldest forgotten first.

    A command for a closed attempt, or one older than it, is late and must not start again.
    """

    def __init__(self, limit: int = MAX_CLOSED) -> None:
        self._limit = limit
        self._closed: dict[bytes, int] = {}

    def close(self, key: RequestKey) -> None:
        """This attempt and all earlier ones are over."""
        request_id, attempt = key
        highest = max(attempt, self._closed.pop(request_id, 0))
        self._closed[request_id] = highest
        if len(self._closed) > self._limit:
            del self._closed[next(iter(self._closed))]

    def is_closed(self, key: RequestKey) -> bool:
        """Whether the attempt is over."""
        return key[1] <= self._closed.get(key[0], 0)
