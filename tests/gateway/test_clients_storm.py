"""Each client's view of its stream is exactly-once, whatever is lost, repeated or reordered."""

import random
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.inbox import Inbox
from tandem.messages.client import Accepted, Done, Output, Received, Resume, ResumeRefused
from tests.gateway.session_desk import accepted, done, make_desk, output, request_id

NUM_TOKENS = 12


@dataclass
class Reader:
    """A client over a link that may lose, repeat and reorder everything."""

    identity: bytes
    number: int
    inbox: Inbox = field(default_factory=Inbox)
    chunks: list[Output] = field(default_factory=list)
    is_over: bool = False
    is_accepted: bool = False

    def hear(self, message) -> bool:
        """Take a message; whether something is missing before it."""
        if self.is_over or isinstance(message, ResumeRefused):
            return False
        if isinstance(message, Accepted):
            self.is_accepted = True
            return False
        chunks = self.inbox.end(message) if isinstance(message, Done) else self.inbox.take(message)
        if chunks is None:
            return True
        self.chunks += chunks
        self.is_over = isinstance(message, Done)
        return False


class Storm:
    """Random events between sessions and two readers; then `settle` lets everything arrive."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.desk = make_desk(max_backlog_bytes=3000, silence_s=1e6)
        self.readers = [Reader(f"c{number}".encode(), number) for number in (1, 2)]
        self.ahead = {number: self._script(number) for number in (1, 2)}
        self.owner = {reader.number: reader.identity for reader in self.readers}
        self.questions: list[tuple[bytes, object]] = []
        self.num_identities = 0

    def _script(self, number: int) -> list:
        """What the ledger will say: pieces of random sizes, text held back, the end."""
        script: list = [accepted(number)]
        index = 0
        while index < NUM_TOKENS:
            size = min(self.rng.randrange(1, 4), NUM_TOKENS - index)
            text = self.rng.choice([None, None, ""])
            script.append(output(index, size, number, text))
            index += size
        if self.rng.random() < 0.7:
            script.append(output(NUM_TOKENS, 0, number, "tail"))
        return [*script, done(NUM_TOKENS, number)]

    def step(self) -> None:
        usual = [self._speak, self._arrive, self._arrive, self._answer, self._answer]
        self.rng.choice([*usual, self._ask, self._break, self._tick])()

    def _speak(self) -> None:
        number = self.rng.choice([1, 2])
        if self.ahead[number]:
            self.desk.tell(self.ahead[number].pop(0), self.owner[number])

    def _arrive(self) -> None:
        """One message comes, out of order, maybe not for the last time, or is lost."""
        if not self.desk.sent:
            return
        at = self.rng.randrange(len(self.desk.sent))
        client, message = self.desk.sent[at]
        fate = self.rng.random()
        if fate < 0.75:
            del self.desk.sent[at]
        if fate > 0.15:
            self._hear(client, message)

    def _hear(self, client: bytes, message) -> None:
        for reader in self.readers:
            if reader.identity == client and reader.hear(message):
                self._say(reader, Resume)

    def _say(self, reader: Reader, kind: type) -> None:
        fields = {"request_id": request_id(reader.number), "next_index": reader.inbox.next_index}
        if kind is Received:
            fields["is_done"] = reader.is_over
        self.questions.append((reader.identity, kind(**fields)))

    def _ask(self) -> None:
        reader = self.rng.choice(self.readers)
        self._say(reader, self.rng.choice([Received, Resume]))

    def _answer(self) -> None:
        """One question comes, out of order, maybe not for the last time, or is lost."""
        if not self.questions:
            return
        at = self.rng.randrange(len(self.questions))
        client, message = self.questions[at]
        fate = self.rng.random()
        if fate < 0.75:
            del self.questions[at]
        if fate > 0.15:
            self._put(client, message)

    def _put(self, client: bytes, message) -> None:
        handle = (
            self.desk.sessions.resume
            if isinstance(message, Resume)
            else self.desk.sessions.received
        )
        self.desk.do(handle(client, message, self.desk.now))

    def _break(self) -> None:
        reader = self.rng.choice(self.readers)
        self.desk.sessions.unreachable(reader.identity)
        if self.rng.random() < 0.5 and reader.is_accepted:
            self.num_identities += 1
            reader.identity = f"n{self.num_identities}".encode()
            self._say(reader, Resume)

    def _tick(self) -> None:
        self.desk.tick(self.rng.choice([0.1, 0.6, 2.1]))

    def settle(self) -> None:
        self.questions.clear()
        for number, reader in ((r.number, r) for r in self.readers):
            while self.ahead[number]:
                self.desk.tell(self.ahead[number].pop(0), self.owner[number])
            reader.is_accepted = True
        for _ in range(10):
            for reader in self.readers:
                self._put(
                    reader.identity,
                    Resume(
                        request_id=request_id(reader.number), next_index=reader.inbox.next_index
                    ),
                )
            sent, self.desk.sent = self.desk.sent, []
            for client, message in sent:
                self._hear(client, message)
            self.questions.clear()
            self.desk.tick(0.6)


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_view_is_exactly_once_whatever_is_lost_repeated_or_reordered(
    rng: random.Random,
) -> None:
    storm = Storm(rng)
    texts = {
        number: "".join(m.text for m in script if isinstance(m, Output))
        for number, script in storm.ahead.items()
    }
    for _ in range(rng.randrange(50, 300)):
        storm.step()
    storm.settle()
    for reader in storm.readers:
        ids = [token_id for chunk in reader.chunks for token_id in chunk.token_ids]
        assert reader.is_over
        assert ids == reader.inbox.ids == list(range(100, 100 + NUM_TOKENS))
        assert "".join(chunk.text for chunk in reader.chunks) == texts[reader.number]
        storm._put(
            reader.identity,
            Received(request_id=request_id(reader.number), next_index=NUM_TOKENS, is_done=True),
        )
    assert len(storm.desk.sessions) == 0
    assert not storm.desk.cuts
