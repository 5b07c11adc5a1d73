"""Which tokens may come next in an answer that keeps a JSON schema.

A matcher's state is a function of the schema and the output ids so far, so it is never sent: every
node that draws a token of a request follows the ids that it knows, and one per step from then on.
Only llguidance's own trie of the vocabulary is loaded here, no tokenizer of the gateway's kind
(docs/decisions/0020-structured-output.md).
"""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.runner import SampleRequest
from scheduling.views import RequestKey
from tandem.json_schema import NoGrammarLibraryError, compile_schema, load_llguidance, summary

BoolArray = NDArray[np.bool_]
# Compiled schemas that are kept, each with what its lexer has learnt so far.
MAX_GRAMMARS = 32
MAX_MATCHERS = 1024  # attempts that are followed; one that is forgotten is followed anew
log = logging.getLogger("tandem.node")


@dataclass(slots=True)
class _Followed:
    """The matcher of an attempt, and how many of its output ids it has seen."""

    matcher: Any
    num_seen: int


class Grammars:
    """Schemas compiled for one model. `prepare` may be called by any thread, the rest by one.

    `eos_token_ids` are allowed where the JSON text may end, and nowhere else.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._trie: Any = None
        self._trie_lock = threading.Lock()
        self._lock = threading.Lock()
        self._compiled: dict[str, Any] = {}
        self._followed: dict[RequestKey, _Followed] = {}

    def load(self) -> bool:
        """Read the vocabulary before the node is ready; False where that cannot be done.

        Of 128,000 tokens it takes 2 s, in which no other thread of the process runs.
        """
        try:
            self._load_trie(load_llguidance())
        except NoGrammarLibraryError:
            return False
        except ValueError as error:
            log.warning("requests with a JSON schema will be refused: %s", error)
            return False
        return True

    def is_prepared(self, schema: str) -> bool:
        """Whether requests with this schema need not wait."""
        with self._lock:
            return schema in self._compiled

    def prepare(self, schema: str) -> None:
        """Compile a schema for the steps to come.

        Raises ValueError for a schema that cannot be kept, NoGrammarLibraryError.
        """
        self._prototype(schema)

    def allowed(self, request: SampleRequest) -> BoolArray:
        """Which of the model's tokens may come next [vocab size]. ValueError says why none can."""
        schema = request.params.json_schema
        assert schema is not None
        matcher = self._follow(schema, request)
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher.is_error():
            raise self._given_up(schema, request, matcher)
        # The tokenizer may know fewer tokens than the model has rows for, or more: neither counts.
        allowed = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
        return allowed.view(np.bool_)

    def forget(self, key: RequestKey) -> None:
        """The attempt has ended."""
        self._followed.pop(key, None)

    # --- inside -----------------------------------------------------------------------------

    def _follow(self, schema: str, request: SampleRequest) -> Any:  # noqa: ANN401
        """The request's matcher after all its output ids."""
        output_ids, key = request.output_ids, request.key
        followed = None if key is None else self._followed.pop(key, None)
        if followed is None or followed.num_seen > len(output_ids):
            followed = _Followed(self._prototype(schema).deep_copy(), 0)
        new_ids = output_ids[followed.num_seen :].tolist()
        if new_ids and not followed.matcher.consume_tokens(new_ids):
            raise self._given_up(schema, request, followed.matcher)
        followed.num_seen = len(output_ids)
        if key is not None:
            self._followed[key] = followed  # the last one is the latest used
            if len(self._followed) > MAX_MATCHERS:
                del self._followed[next(iter(self._followed))]
        return followed.matcher

    def _given_up(self, schema: str, request: SampleRequest, matcher: Any) -> ValueError:  # noqa: ANN401
        """Matchers stay in error, and share what their lexers have learnt: begin anew."""
        with self._lock:
            self._compiled.pop(schema, None)
        if request.key is not None:
            self.forget(request.key)
        return ValueError(
            f"the answer cannot go on as its JSON schema asks after {len(request.output_ids)} "
            f"tokens ({summary(matcher.get_error())}): simplify the schema"
        )

    def _prototype(self, schema: str) -> Any:  # noqa: ANN401
        with self._lock:
            compiled = self._compiled.pop(schema, None)
            if compiled is not None:
                self._compiled[schema] = compiled  # the last one is the latest used
                return compiled
        library = load_llguidance()
        compiled = compile_schema(library, schema, self._load_trie(library))
        with self._lock:
            self._compiled[schema] = compiled
            if len(self._compiled) > MAX_GRAMMARS:
                del self._compiled[next(iter(self._compiled))]
        return compiled

    def _load_trie(self, library: Any) -> Any:  # noqa: ANN401
        """The vocabulary as bytes, once. ValueError where this model has none that is of use."""
        with self._trie_lock:
            if self._trie is not None:
                return self._trie
            if not self._eos_token_ids:
                raise ValueError(
                    "the model's generation_config.json names no end of text (eos_token_id), so an "
                    "answer could not end where its JSON does: add it"
                )
            file = self._folder / "tokenizer.json"
            try:
                self._trie = library.LLTokenizer(
                    file.read_text(encoding="utf-8"),
                    eos_token=list(self._eos_token_ids),
                    slices=library.LLTokenizer.json_slices(),
                )
            except (OSError, ValueError) as error:
                text = f"llguidance cannot read {file}: {error}"
                raise ValueError(text) from None
            return self._trie
