"""Composes the answers of completions, streamed and whole, from what the choices say. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import UNSET, UnsetType

from gateway.openai.answers import CompletionAnswer, CompletionChoice, Usage
from gateway.openai.chunks import Head, Shape, Tally, TextFrames, frame, usage_within
from gateway.openai.logprobs import CompletionLogprobs, CompletionScribe, joined
from gateway.openai.reading import Begun, Ending, Piece
from tandem.messages.common import TokenLogprobs


@dataclass(frozen=True, slots=True)
class PromptShown:
    """A prompt. `text` where it is to be echoed; `logprobs` from its second token on, where they
    are wanted, too."""

    token_ids: tuple[int, ...]
    text: str | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


class Scribe:
    """One choice: its pieces as they are shown."""

    def __init__(self, index: int, shape: Shape, prompt: PromptShown) -> None:
        self._index = index
        self._shape = shape
        self._prompt = prompt
        self._logprobs = None if shape.names is None else CompletionScribe(shape.names)

    def begin(self) -> CompletionChoice | None:
        """The prompt, where there is something to show of it."""
        prompt = self._prompt
        if prompt.text is None and not self._shape.returns_token_ids:
            return None
        logprobs = None
        if prompt.text is not None and self._logprobs is not None:
            logprobs = self._logprobs.take(prompt.token_ids, [None, *prompt.logprobs])
        ids: list[int] | UnsetType = UNSET
        if self._shape.returns_token_ids:
            ids = list(prompt.token_ids)
        text = prompt.text or ""
        return CompletionChoice(
            index=self._index, text=text, logprobs=logprobs, prompt_token_ids=ids
        )

    def piece(self, piece: Piece) -> CompletionChoice:
        """More of the answer."""
        logprobs = None
        if self._logprobs is not None:
            logprobs = self._logprobs.take(piece.token_ids, piece.logprobs)
        return CompletionChoice(
            index=self._index,
            text=piece.text,
            logprobs=logprobs,
            token_ids=piece.token_ids if self._shape.returns_token_ids else UNSET,
        )

    def end(self, ending: Ending) -> CompletionChoice:
        """Its last piece."""
        return CompletionChoice(
            index=self._index,
            text=ending.text,
            finish_reason=ending.finish,
            stop_reason=ending.stop,
        )


class CompletionChunks:
    """The frames of a streamed completion."""

    def __init__(
        self, head: Head, shape: Shape, tally: Tally, prompts: Sequence[PromptShown]
    ) -> None:
        self._head = head
        self._shape = shape
        self._tally = tally
        self._scribes = [
            Scribe(index, shape, prompts[index // tally.num_choices])
            for index in range(len(prompts) * tally.num_choices)
        ]
        self._plain: dict[int, TextFrames] = {}

    def begin(self, index: int, begun: Begun) -> bytes:
        """The first chunk of a choice, where there is something to say before its tokens."""
        self._head = replace(self._head, fingerprint=begun.fingerprint)
        self._plain.clear()
        choice = self._scribes[index].begin()
        return b"" if choice is None else self._chunk(choice)

    def piece(self, index: int, piece: Piece) -> bytes:
        """One chunk."""
        if not self._shape.is_plain:
            return self._chunk(self._scribes[index].piece(piece))
        if index not in self._plain:
            empty = self._chunk(self._scribes[index].piece(Piece("")))
            self._plain[index] = TextFrames(empty, "text")
        return self._plain[index].frame(piece.text)

    def end(self, index: int, ending: Ending) -> bytes:
        """The last chunk of a choice."""
        return self._chunk(self._scribes[index].end(ending))

    def usage(self) -> bytes:
        """The chunk before the end of the stream, where it is asked for."""
        if not self._shape.includes_usage:
            return b""
        return frame(answer(self._head, (), self._tally.usage()))

    def _chunk(self, choice: CompletionChoice) -> bytes:
        return frame(answer(self._head, (choice,), usage_within(self._shape, self._tally)))


class WholeCompletion:
    """Gathers one choice of a completion that is not streamed."""

    def __init__(self, index: int, shape: Shape, prompt: PromptShown) -> None:
        self._scribe = Scribe(index, shape, prompt)
        begun = self._scribe.begin()
        self._pieces = [] if begun is None else [begun]

    def piece(self, piece: Piece) -> None:
        """More of it."""
        self._pieces.append(self._scribe.piece(piece))

    def choice(self, ending: Ending) -> CompletionChoice:
        """All of it."""
        last = self._scribe.end(ending)
        pieces = [*self._pieces, last]
        logprobs: list[CompletionLogprobs] = [p.logprobs for p in pieces if p.logprobs is not None]
        ids = [each for p in pieces if p.token_ids is not UNSET for each in p.token_ids]
        prompt_ids = pieces[0].prompt_token_ids
        return CompletionChoice(
            index=last.index,
            text="".join(piece.text for piece in pieces),
            logprobs=joined(logprobs) if logprobs else None,
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            token_ids=UNSET if prompt_ids is UNSET else tuple(ids),
            prompt_token_ids=prompt_ids,
        )


def answer(
    head: Head, choices: Sequence[CompletionChoice], usage: Usage | UnsetType | None
) -> CompletionAnswer:
    """A whole answer, or a chunk."""
    return CompletionAnswer(
        id=head.answer_id,
        created=head.created,
        model=head.model,
        choices=tuple(choices),
        system_fingerprint=head.fingerprint,
        usage=usage,
    )
