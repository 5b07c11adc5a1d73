"""The gateway's tokenizer as the endpoints see it (`Text` of gateway/http/services.py)."""

from collections.abc import Mapping, Sequence

from gateway.http.services import Conversation
from gateway.token_pieces import TokenPieces
from gateway.tokenize import Tokenization
from tandem.frames import TokenIds


class TokenizedText:
    """See the module. What single tokens stand for is found out when it is first asked."""

    def __init__(self, tokenization: Tokenization) -> None:
        self._tokenization = tokenization
        self._pieces: TokenPieces | None = None

    async def encode(
        self, text: str, *, add_special_tokens: bool, at_most: int | None = None
    ) -> TokenIds:
        """Ids of a text, in which the names of special tokens are plain text."""
        return await self._tokenization.encode(
            text, add_special_tokens=add_special_tokens, at_most=at_most
        )

    async def render(
        self,
        messages: Conversation,
        *,
        tools: Sequence[Mapping[str, object]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: Mapping[str, str | int | float | bool],
    ) -> TokenIds:
        """Ids of a conversation by the model's own chat template."""
        return await self._tokenization.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids."""
        return self._tokenization.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """What one token stands for, as logprobs show it."""
        return self._all_pieces().text_of(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The same in bytes."""
        return self._all_pieces().bytes_of(token_id)

    def _all_pieces(self) -> TokenPieces:
        if self._pieces is None:
            tokens = self._tokenization
            self._pieces = TokenPieces(
                lambda ids: tokens.decode(ids, skip_special_tokens=False),
                tokens.spelling,
                tokens.plain_token(),
            )
        return self._pieces
