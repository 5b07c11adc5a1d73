"""Text to token ids in a small thread pool, and back: a long prompt must not hold up every stream.

The tokenizer is transformers' AutoTokenizer, loaded by the composition root and described here by
what is used of it. Its encoding releases the interpreter lock; decoding a token takes microseconds.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from gateway.admission import Rejected
from tandem.frames import TokenIds
from tandem.messages.client import Submit

logger = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: Any

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

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:  # noqa: ANN401  text, as `tokenize` is false
        """The prompt of a conversation."""


class Tokenization:
    """See the module. Threads share the tokenizer, which is not changed after the first call."""

    def __init__(self, tokenizer: Tokenizer, *, num_threads: int) -> None:
        self._tokenizer = tokenizer
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")
        self._encode("a", is_template=False)  # resets truncation once, which is no thread's to do

    async def prompt_ids(self, submit: Submit) -> TokenIds:
        """Token ids of the prompt in whatever form it was given. Raises Rejected."""
        if submit.prompt_ids is not None:
            return submit.prompt_ids
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._encode_submit, submit)

    def _encode_submit(self, submit: Submit) -> TokenIds:
        try:
            if submit.chat:
                return self._encode(self._render(submit), is_template=True)
            assert submit.prompt is not None, "admission checked that a prompt is given"
            return self._encode(submit.prompt.data.decode(), is_template=False)
        except UnicodeDecodeError as error:
            raise Rejected(
                "invalid_request",
                f"the prompt is not UTF-8 at byte {error.start}: encode it, or send prompt_ids",
            ) from None

    def _encode(self, text: str, *, is_template: bool) -> TokenIds:
        # A chat template writes its special tokens itself.
        encoded = self._tokenizer(
            text,
            add_special_tokens=not is_template,
            return_attention_mask=False,
            verbose=False,
        )
        return TokenIds(encoded["input_ids"])

    def _render(self, submit: Submit) -> str:
        if not self._tokenizer.chat_template:
            raise Rejected(
                "invalid_request",
                "the model has no chat template: send a prompt instead of chat, or add "
                "chat_template.jinja to the model folder",
            )
        turns = [{"role": turn.role, "content": turn.content} for turn in submit.chat]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # a template's own errors, by its author's rules
            logger.info("chat template refused a conversation: %s", error)
            raise Rejected(
                "invalid_request", f"the model's chat template refuses the conversation: {error}"
            ) from error

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def close(self) -> None:
        """End the threads; prompts that wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
