"""Composes the answers of chats, streamed and whole, from what the choices say. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

from msgspec import UNSET, UnsetType

from gateway.openai.answers import (
    AnsweredCall,
    CallDelta,
    CalledFunction,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatMessage,
    Delta,
    Usage,
)
from gateway.openai.chunks import Head, Shape, Tally, TextFrames, frame, usage_within
from gateway.openai.logprobs import ChatLogprobs, chat_logprobs
from gateway.openai.reading import Begun, Ending, Piece
from gateway.openai.tool_calls import (
    CallArguments,
    CallBegins,
    CallParser,
    Content,
    Found,
    NamedCall,
    NewId,
)
from gateway.openai.tools import ToolPlan
from tandem.frames import TokenIds
from tandem.messages.common import TokenLogprobs


class PlainText:
    """An answer in which no calls are looked for."""

    num_calls = 0

    def push(self, text: str) -> list[Found]:
        """More text."""
        return [Content(text)] if text else []

    def flush(self) -> list[Found]:
        """The text is over."""
        return []


Parser = PlainText | NamedCall | CallParser


def make_parser(plan: ToolPlan, new_id: NewId) -> Parser:
    """For one choice."""
    match plan.mode:
        case "none":
            return PlainText()
        case "named":
            return NamedCall(plan.names[0], new_id)
        case "auto" | "required":
            return CallParser(plan.names, new_id, is_parallel=plan.is_parallel)


def finish_reason(plan: ToolPlan, parser: Parser, ending: Ending) -> str:
    """Of a call that was chosen by the model; one that was named for it ends as text does."""
    if parser.num_calls and plan.mode != "named" and ending.finish == "stop":
        return "tool_calls"
    return ending.finish


class ChatChunks:
    """The frames of a streamed chat. `parsers`: one for each choice."""

    def __init__(
        self,
        head: Head,
        shape: Shape,
        tally: Tally,
        plan: ToolPlan,
        parsers: Sequence[Parser],
        prompt: TokenIds,
    ) -> None:
        self._head = head
        self._shape = shape
        self._tally = tally
        self._plan = plan
        self._parsers = parsers
        self._prompt_ids = _shown_ids(shape, prompt)
        self._plain: dict[int, TextFrames] = {}

    def begin(self, index: int, begun: Begun) -> bytes:
        """The first chunk of a choice."""
        self._head = replace(self._head, fingerprint=begun.fingerprint)
        chunk = self._chunk(ChatChunkChoice(index=index, delta=Delta(role="assistant", content="")))
        self._prompt_ids = UNSET
        self._plain.clear()
        return chunk

    def piece(self, index: int, piece: Piece) -> bytes:
        """One chunk, or several where calls begin; also without text, for tokens came."""
        shape, every = self._shape, self._parsers[index].push(piece.text)
        texts = [found.text for found in every if isinstance(found, Content)]
        if shape.is_plain and len(texts) == len(every):
            frames = self._plain.get(index) or self._plain_frames(index)
            return frames.frame("".join(texts))
        deltas = [_delta(found) for found in every] or [Delta(content="")]
        first = ChatChunkChoice(
            index=index,
            delta=deltas[0],
            logprobs=_logprobs(shape, piece),
            token_ids=piece.token_ids if shape.returns_token_ids else UNSET,
        )
        rest = [ChatChunkChoice(index=index, delta=delta) for delta in deltas[1:]]
        return b"".join(self._chunk(choice) for choice in (first, *rest))

    def _plain_frames(self, index: int) -> TextFrames:
        empty = self._chunk(ChatChunkChoice(index=index, delta=Delta(content="")))
        made = self._plain[index] = TextFrames(empty, "content")
        return made

    def end(self, index: int, ending: Ending) -> bytes:
        """What was held back, and the last chunk of a choice."""
        parser = self._parsers[index]
        found = parser.push(ending.text) + parser.flush()
        choices = [ChatChunkChoice(index=index, delta=_delta(each)) for each in found]
        last = ChatChunkChoice(
            index=index,
            delta=Delta(),
            finish_reason=finish_reason(self._plan, parser, ending),
            stop_reason=ending.stop,
        )
        return b"".join(self._chunk(choice) for choice in (*choices, last))

    def usage(self) -> bytes:
        """The chunk before the end of the stream, where it is asked for."""
        if not self._shape.includes_usage:
            return b""
        return self._frame((), usage=self._tally.usage())

    def _chunk(self, choice: ChatChunkChoice) -> bytes:
        return self._frame((choice,), usage=usage_within(self._shape, self._tally))

    def _frame(
        self, choices: tuple[ChatChunkChoice, ...], usage: Usage | UnsetType | None
    ) -> bytes:
        head = self._head
        chunk = ChatChunk(
            id=head.answer_id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=usage,
            prompt_token_ids=self._prompt_ids,
        )
        return frame(chunk)


def _delta(found: Found) -> Delta:
    match found:
        case Content(text):
            return Delta(content=text)
        case CallBegins(index, call_id, name):
            function = CalledFunction(name=name)
            call = CallDelta(index=index, id=call_id, type="function", function=function)
            return Delta(tool_calls=(call,))
        case CallArguments(index, text):
            call = CallDelta(index=index, function=CalledFunction(arguments=text))
            return Delta(tool_calls=(call,))


def _logprobs(shape: Shape, piece: Piece) -> ChatLogprobs | None:
    if shape.names is None:
        return None
    return chat_logprobs(piece.token_ids, piece.logprobs, shape.names)


class WholeChat:
    """Gathers one choice of a chat that is not streamed."""

    def __init__(self, shape: Shape, plan: ToolPlan, parser: Parser) -> None:
        self._shape = shape
        self._plan = plan
        self._parser = parser
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []

    def piece(self, piece: Piece) -> None:
        """More of it."""
        self._text.append(piece.text)
        self._token_ids += piece.token_ids
        self._logprobs += piece.logprobs

    def choice(self, index: int, ending: Ending) -> ChatChoice:
        """All of it."""
        parser, shape = self._parser, self._shape
        found = parser.push("".join(self._text) + ending.text) + parser.flush()
        whole = Piece("", tuple(self._token_ids), tuple(self._logprobs))
        return ChatChoice(
            index=index,
            message=_message(found),
            logprobs=_logprobs(shape, whole),
            finish_reason=finish_reason(self._plan, parser, ending),
            stop_reason=ending.stop,
            token_ids=self._token_ids if shape.returns_token_ids else UNSET,
        )


def _message(found: Sequence[Found]) -> ChatMessage:
    """Calls in place of content, where there are any."""
    content = "".join(each.text for each in found if isinstance(each, Content))
    calls = [
        AnsweredCall(
            id=begun.call_id,
            function=CalledFunction(name=begun.name, arguments=_arguments(found, begun.index)),
        )
        for begun in found
        if isinstance(begun, CallBegins)
    ]
    if not calls:
        return ChatMessage(content=content)
    return ChatMessage(content=content or None, tool_calls=calls)


def _arguments(found: Sequence[Found], index: int) -> str:
    return "".join(
        each.text for each in found if isinstance(each, CallArguments) and each.index == index
    )


def whole_chat(
    head: Head, shape: Shape, tally: Tally, choices: Sequence[ChatChoice], prompt: TokenIds
) -> ChatAnswer:
    """The answer to a chat that is not streamed."""
    return ChatAnswer(
        id=head.answer_id,
        created=head.created,
        model=head.model,
        choices=sorted(choices, key=attrgetter("index")),
        usage=tally.usage(),
        system_fingerprint=head.fingerprint,
        prompt_token_ids=_shown_ids(shape, prompt),
    )


def _shown_ids(shape: Shape, prompt: TokenIds) -> list[int] | UnsetType:
    return prompt.array.tolist() if shape.returns_token_ids else UNSET
