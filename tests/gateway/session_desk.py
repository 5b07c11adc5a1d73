"""Sessions with what they asked to be sent, and the messages that go in."""

from dataclasses import dataclass, field

from gateway.actions import ToClient
from gateway.clients import Cut, Limits, Sessions
from tandem.messages.client import Accepted, Done, Output, Received, Resume
from tandem.messages.common import Timeline, Usage


def request_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def accepted(number: int = 1) -> Accepted:
    return Accepted(
        label=f"l{number}",
        request_id=request_id(number),
        seed=7,
        model_fingerprint="f",
        num_prompt_tokens=3,
    )


def output(index: int, num_tokens: int = 1, number: int = 1, text: str | None = None) -> Output:
    ids = tuple(range(100 + index, 100 + index + num_tokens))
    text = "".join(chr(97 + i % 26) for i in ids) if text is None else text
    return Output(request_id=request_id(number), index=index, token_ids=ids, text=text)


def done(num_tokens: int, number: int = 1, reason: str = "length") -> Done:
    return Done(
        request_id=request_id(number),
        reason=reason,
        usage=Usage(num_prompt_tokens=3, num_output_tokens=num_tokens),
        timeline=Timeline(received_unix_s=1.0),
        sla_class="standard",
        sla_attained=True,
    )


@dataclass
class Desk:
    """Sessions and what they asked to be sent."""

    sessions: Sessions
    sent: list[tuple[bytes, object]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    now: float = 0.0

    def do(self, actions) -> list[object]:
        """Take actions; what is sent is returned too."""
        messages: list[object] = []
        for action in actions:
            if isinstance(action, Cut):
                self.cuts.append(action)
            else:
                assert isinstance(action, ToClient)
                self.sent.append((action.client, action.message))
                messages.append(action.message)
        return messages

    def tell(self, message, client: bytes = b"c"):
        return self.do(self.sessions.tell(client, message, self.now))

    def received(self, next_index: int, client=b"c", number: int = 1, is_done: bool = False):
        message = Received(request_id=request_id(number), next_index=next_index, is_done=is_done)
        return self.do(self.sessions.received(client, message, self.now))

    def resume(self, next_index: int, client: bytes = b"c", number: int = 1):
        message = Resume(request_id=request_id(number), next_index=next_index)
        return self.do(self.sessions.resume(client, message, self.now))

    def tick(self, seconds: float = 0.1):
        """Time passes, with a tick every half second."""
        messages: list[object] = []
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + 0.5, until)
            messages += self.do(self.sessions.tick(self.now))
        return messages

    def stand_still(self, seconds: float):
        """The gateway does nothing for so long, and ticks then."""
        self.now += seconds
        return self.do(self.sessions.tick(self.now))


def make_desk(key_of=lambda client: None, **limits) -> Desk:
    return Desk(Sessions(Limits(**limits), key_of))
