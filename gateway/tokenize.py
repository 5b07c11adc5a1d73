"""Text to token ids in a small thread pool, and back: a long prompt must not hold up every stream.

The tokenizer is transformers' AutoTokenizer, loaded by the composition root and described here by
what is used of it. Its encoding releases the interpreter lock; decoding a token takes microseconds.

What callers write is text: the names of special tokens in it are encoded like any other word. Only
the chat template of the checkpoint writes special tokens (gateway/special_names.py).
"""

import asyncio
import copy
import inspect
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from tokenizers import decoders

from gateway.admission import Rejected
from gateway.grammar_check import GrammarCheck
from gateway.special_names import SpecialNames
from gateway.text import REPLACEMENT, Decode, Whole
from tandem.frames import TokenIds
from tandem.messages.client import Submit

T = TypeVar("T")
NONCE_DIGITS = 30
UNLIMITED = 1 << 40
LONG_CHARS_PER_TOKEN = 8  # prose has four
SHORT_CHARS = 256  # encoded in 0.07 ms: a thread's wake-up and the way back take longer
logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any
    split_special_tokens: bool  # names of special tokens are plain text

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Tokens beside the vocabulary, by id; each has `content` and `special`."""

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_attention_mask: bool, verbose: bool
    ) -> Mapping[str, Any]:
        """Token ids under `input_ids`."""

    def decode(
        self,
        token_ids: list[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str:
        """Text of token ids."""

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        """The vocabulary's entry of an id."""

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tokenize: bool,
        **template_kwargs: str | float | bool,
    ) -> Any:  # noqa: ANN401  text, as `tokenize` is false
        """The prompt of a conversation."""


class WholeTexts(dict[int, str | None]):
    """Texts of single tokens, looked up when first asked, for decoders that join bytes.

    There a token of whole characters has the same text everywhere; others, and those without text,
    are None.
    """

    def __init__(self, decode: Decode) -> None:
        super().__init__()
        self._decode = decode

    def __missing__(self, token_id: int) -> str | None:
        text = self._decode([token_id])
        found = self[token_id] = text if text and REPLACEMENT not in text else None
        return found


class Tokenization:
    """See the module. Threads share the tokenizers, which are not changed after the first call."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        num_threads: int,
        context: Callable[[], int] = lambda: UNLIMITED,
    ) -> None:
        """`context`: tokens that a prompt can have now. Of texts that are surely longer only the
        beginning is encoded: 10 MB took a thread for seconds, and were then refused."""
        self._tokenizer = tokenizer
        self._context = context
        # What is called twice per token goes to the tokenizers library itself where that is below:
        # 0.5 us in place of 2.7.
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        is_bytes = isinstance(getattr(self._backend, "decoder", None), decoders.ByteLevel)
        self._whole_texts = WholeTexts(self.decode) if is_bytes else None
        # A switch of the tokenizer itself, so there are two: threads must not turn it under others.
        self._plain = copy.deepcopy(tokenizer)
        self._plain.split_special_tokens = True
        added = tokenizer.added_tokens_decoder.values()
        self._names = SpecialNames(token.content for token in added if token.special)
        self._own_arguments = frozenset(inspect.signature(tokenizer.apply_chat_template).parameters)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")
        self._grammars = GrammarCheck()
        self._note_seconds: Callable[[float], None] = lambda seconds: None
        for each in (self._tokenizer, self._plain):  # truncation is reset once: no thread's to do
            _encode_plainly(each, "a", add_special_tokens=True)

    async def prompt_ids(self, submit: Submit) -> TokenIds:
        """Token ids of the prompt in whatever form it was given. Raises Rejected."""
        if submit.params.json_schema is not None:
            await self._grammars.check(submit.params.json_schema)
        if submit.prompt_ids is not None:
            return submit.prompt_ids
        return await self._in_thread(lambda: self._encode_submit(submit))

    async def encode(
        self, text: str, *, add_special_tokens: bool, at_most: int | None = None
    ) -> TokenIds:
        """Token ids of a text. Raises Rejected for one of more tokens than `at_most`, or than the
        context has."""
        limit = self._context() if at_most is None else at_most
        return await self._in_thread(
            lambda: self._encode_text(text, add_special_tokens=add_special_tokens, limit=limit),
            is_short=len(text) <= SHORT_CHARS,
        )

    def _encode_text(self, text: str, *, add_special_tokens: bool, limit: int) -> TokenIds:
        _require_fit(self._plain, text, limit)
        return TokenIds(_encode(self._plain, text, add_special_tokens=add_special_tokens))

    async def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, str | float | bool] | None = None,
    ) -> TokenIds:
        """Token ids of a conversation by the model's chat template. Raises Rejected.

        `template_kwargs` are the template's own variables.
        """
        settings = {
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **self._checked(template_kwargs or {}),
        }
        return await self._in_thread(lambda: self._render(list(messages), settings))

    def watch(self, note_seconds: Callable[[float], None]) -> None:
        """From now on tell how long each prompt took, the wait for a thread included."""
        self._note_seconds = note_seconds

    async def _in_thread(self, work: Callable[[], T], *, is_short: bool = False) -> T:
        began = time.perf_counter()
        try:
            if is_short:
                return work()
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._note_seconds(time.perf_counter() - began)

    def _encode_submit(self, submit: Submit) -> TokenIds:
        if submit.chat:
            turns = [{"role": turn.role, "content": turn.content} for turn in submit.chat]
            return self._render(turns, {"add_generation_prompt": True})
        assert submit.prompt is not None, "admission checked that a prompt is given"
        try:
            text = submit.prompt.data.decode()
        except UnicodeDecodeError as error:
            raise Rejected(
                "invalid_request",
                f"the prompt is not UTF-8 at byte {error.start}: encode it, or send prompt_ids",
            ) from None
        return self._encode_text(text, add_special_tokens=True, limit=self._context())

    def _checked(
        self, template_kwargs: Mapping[str, str | float | bool]
    ) -> Mapping[str, str | float | bool]:
        for name in template_kwargs:
            if name in self._own_arguments or not name.isidentifier():
                raise Rejected(
                    "invalid_request",
                    f"{name[:100]!r} is no variable that a request may set for the chat template",
                )
        return template_kwargs

    def _render(
        self, messages: Sequence[Mapping[str, object]], settings: Mapping[str, Any]
    ) -> TokenIds:
        if not self._tokenizer.chat_template:
            raise Rejected(
                "invalid_request",
                "the model has no chat template: send a prompt instead of chat, or add "
                "chat_template.jinja to the model folder",
            )
        nonce = str(secrets.randbelow(9 * 10 ** (NONCE_DIGITS - 1)) + 10 ** (NONCE_DIGITS - 1))
        hidden = {name: self._names.hide(value, nonce) for name, value in settings.items()}
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    self._names.hide(messages, nonce), tokenize=False, **hidden
                )
            )
        except Exception as error:  # a template's own errors, by its author's rules
            logger.info("chat template refused a conversation: %s", error)
            raise Rejected(
                "invalid_request",
                f"the model's chat template refuses the conversation: {str(error)[:500]}",
            ) from error
        _require_fit(self._plain, text, self._context())
        ids: list[int] = []
        for piece, is_plain in self._names.pieces(text, nonce):
            # A chat template writes its special tokens itself.
            tokenizer = self._plain if is_plain else self._tokenizer
            ids += _encode(tokenizer, piece, add_special_tokens=False)
        return TokenIds(ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids, without special tokens unless asked for."""
        if self._backend is not None:
            text: str = self._backend.decode(
                list(token_ids), skip_special_tokens=skip_special_tokens
            )
            return text
        return self._tokenizer.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )

    @property
    def whole(self) -> Whole | None:
        """See `gateway.text.Whole`; None where a token's text depends on its neighbours."""
        return None if self._whole_texts is None else self._whole_texts.__getitem__

    def spelling(self, token_id: int) -> str | None:
        """The vocabulary's entry of an id."""
        return self._tokenizer.convert_ids_to_tokens(token_id)

    def plain_token(self) -> int:
        """Some token of plain text."""
        return _encode(self._plain, "a", add_special_tokens=False)[-1]

    def close(self) -> None:
        """End the threads; prompts that wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _require_fit(tokenizer: Tokenizer, text: str, limit: int) -> None:
    """Raise Rejected where the beginning of a long text alone has more tokens than allowed."""
    num_chars = LONG_CHARS_PER_TOKEN * limit
    if len(text) <= num_chars:
        return
    if len(_encode(tokenizer, text[:num_chars], add_special_tokens=False)) > limit + 1:
        raise Rejected(
            "context_too_long",
            f"the prompt has more than {limit} tokens, and the context is {limit}: shorten it",
        )


def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Through the tokenizers library itself, where that is below and set as the tokenizer says:
    4 us in place of 80 for a word."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.encode_special_tokens == tokenizer.split_special_tokens:
        ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids
    return _encode_plainly(tokenizer, text, add_special_tokens=add_special_tokens)


def _encode_plainly(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The specification of `_encode`."""
    ids: list[int] = tokenizer(
        text,
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return ids
