"""Guards around the hand-off: fences, processes of the past, the guests of a node."""

from scripts.mutation.mutation import Mutation

FENCING = "tests/kv_transfer/test_fencing.py"
ADOPTION = "tests/node/test_adoption.py"
JOINS = "tests/node/test_joins.py"
REUSE = "tests/node/test_prefix_reuse.py"

FENCES = (
    Mutation(
        "fence-only-when-wanted",
        "a frozen writer that nobody needs pages from is left",
        "kv_transfer/fencing.py",
        "if (is_over or pages_wanted) and quiet_s > FENCE_AFTER_S and may_ask:",
        "if quiet_s > FENCE_AFTER_S and may_ask:",
        (FENCING,),
    ),
    Mutation(
        "fence-after-silence",
        "nobody is fenced before it was silent for long",
        "kv_transfer/fencing.py",
        "if (is_over or pages_wanted) and quiet_s > FENCE_AFTER_S and may_ask:",
        "if (is_over or pages_wanted) and may_ask:",
        (FENCING,),
    ),
    Mutation(
        "fence-at-all",
        "a frozen writer is fenced when its pages are wanted",
        "kv_transfer/fencing.py",
        "if (is_over or pages_wanted) and quiet_s > FENCE_AFTER_S and may_ask:",
        "if False:",
        (FENCING,),
    ),
    Mutation(
        "sign-of-life",
        "a writer that says something is not fenced",
        "kv_transfer/fencing.py",
        "self._quiet_since[writer] = self._time.now_s",
        "pass",
        (FENCING,),
    ),
    Mutation(
        "past-writers",
        "what an older or dead process asks begins nothing",
        "kv_transfer/incoming.py",
        "if is_past and not isinstance(message, WriterHello | Drained):",
        "if False:",
        (FENCING,),
    ),
    Mutation(
        "drained-of-the-past",
        "Drained is true at any age",
        "kv_transfer/incoming.py",
        "if is_past and not isinstance(message, WriterHello | Drained):",
        "if is_past and not isinstance(message, WriterHello):",
        (FENCING,),
    ),
    Mutation(
        "writers-by-epoch",
        "the newest process of a name is the one of the highest epoch",
        "kv_transfer/fencing.py",
        "if epoch <= known_epoch:",
        "if False:",
        (FENCING,),
    ),
    Mutation(
        "gone-is-past",
        "what of a dead process is still on the wire begins nothing",
        "kv_transfer/fencing.py",
        "if writer in self._gone:",
        "if False:",
        (FENCING,),
    ),
    Mutation(
        "replaced-writer",
        "a newer process ends what an older one of its name began",
        "kv_transfer/incoming.py",
        "for arrival in [] if older is None else self._table.of_writer(older):",
        "for arrival in []:",
        (FENCING,),
    ),
    Mutation(
        "fence-of-the-ended",
        "a grant to a process that ended is told of its end",
        "kv_transfer/pool_owner.py",
        "if self._transports.get(writer) == ENDED:\n            return",
        "if False:\n            return",
        ("tests/kv_transfer/test_fence.py",),
    ),
)

GUESTS = (
    Mutation(
        "adopt-expiry",
        "KV of a silent gateway is given up",
        "decode_node/adoption.py",
        "if self._time.now_s - orphan.asked_at >= PATIENCE_S:",
        "if False:",
        (ADOPTION,),
    ),
    Mutation(
        "adopt-stranger",
        "only its gateway says whether an attempt is wanted",
        "decode_node/adoption.py",
        "if orphan is None or orphan.gateway != gateway:",
        "if orphan is None:",
        (ADOPTION,),
    ),
    Mutation(
        "adopt-resent",
        "a gateway is asked again until it answers",
        "decode_node/adoption.py",
        "return [(g, m) for g, m in self._outbox.due(now) if isinstance(m, Adopt)], silent",
        "due = [(g, m) for g, m in self._outbox.due(now) if isinstance(m, Adopt)]\n"
        "        for key in list(self._orphans):\n"
        "            self._outbox.acknowledge(key)\n"
        "        return due, silent",
        (ADOPTION,),
    ),
    Mutation(
        "hashes-at-the-join",
        "matched pages are the request's own prefix",
        "decode_node/replies.py",
        "if arrived.cached_hashes != tuple(hashes[: arrived.num_cached]):",
        "if False:",
        (REUSE,),
    ),
    Mutation(
        "tokens-at-the-join",
        "KV is of as many tokens as the request has",
        "decode_node/replies.py",
        "if arrived.num_tokens != resident.num_tokens:",
        "if False:",
        (JOINS,),
    ),
    Mutation(
        "first-token-at-the-join",
        "a first token is one of the model's",
        "decode_node/replies.py",
        "if arrived.first_token.token_id >= state.identity.model.vocab_size:",
        "if False:",
        (JOINS,),
    ),
    Mutation(
        "pages-at-the-join",
        "the reserved pages are enough for the whole answer",
        "decode_node/replies.py",
        "if num_pages < resident.num_final_pages:",
        "if False:",
        (JOINS,),
    ),
    Mutation(
        "tombstones",
        "a command of an attempt that is over starts nothing",
        "node/resident.py",
        "return key[1] <= self._closed.get(key[0], 0)",
        "return False",
        ("tests/node/test_pair.py", "tests/node/test_regressions.py"),
    ),
    Mutation(
        "index-after-commit",
        "what was read is no cache before the owner took the Commit",
        "prefill_node/guest.py",
        "if not job.num_read_pages:",
        "if True:",
        (REUSE,),
    ),
    Mutation(
        "index-only-proven",
        "what the owner refused does not become cache",
        "prefill_node/guest.py",
        "            if is_proven:\n",
        "            if True:\n",
        (REUSE,),
    ),
    Mutation(
        "stuck-grants",
        "two nodes do not hold each other's last pages for ever",
        "prefill_node/guest.py",
        "if now - (job.granted_at or now) > GRANTED_PATIENCE_S:",
        "if False:",
        (JOINS,),
    ),
)

GUARDS = (*FENCES, *GUESTS)
