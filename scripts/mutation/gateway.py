"""Guards of the gateway's streams: attempts, epochs, indices, retries, moves."""

from scripts.mutation.mutation import Mutation

LEDGER = "tests/gateway/test_ledger.py"
ATTEMPTS = "tests/gateway/test_ledger_attempts.py"
EPOCHS = "tests/gateway/test_ledger_epochs.py"
DOUBT = "tests/gateway/test_ledger_doubt.py"
FAIL_OVER = "tests/gateway/test_ledger_fail_over.py"
MOVES = "tests/gateway/test_ledger_moves.py"
STREAM = "tests/gateway/test_token_stream.py"

STREAMS = (
    Mutation(
        "attempt-fence",
        "tokens and endings of another attempt are not taken",
        "gateway/emissions.py",
        "attempt is None or attempt.number != number:",
        "attempt is None:",
        (ATTEMPTS, LEDGER),
    ),
    Mutation(
        "node-fence",
        "a node that does not serve the attempt is not believed",
        "gateway/emissions.py",
        "return (request, attempt) if attempt.has_node(node) else None",
        "return (request, attempt)",
        (LEDGER,),
    ),
    Mutation(
        "emission-epoch",
        "what a node says under an epoch that is down is dropped",
        "gateway/emissions.py",
        "if self._live.demands.is_past(emission.node_id, emission.epoch):",
        "if False:",
        (EPOCHS,),
    ),
    Mutation(
        "emission-name",
        "no node emits in another one's name",
        "gateway/ledger.py",
        "case Emission() if (message.node_id, message.incarnation) == (\n"
        "                node.node_id,\n"
        "                node.incarnation,\n"
        "            ):",
        "case Emission():",
        (LEDGER,),
    ),
    Mutation(
        "node-incarnation",
        "a predecessor of the node is not the node",
        "gateway/attempt.py",
        "(n.node_id, n.incarnation) == (node.node_id, node.incarnation) for n in self.nodes",
        "n.node_id == node.node_id for n in self.nodes",
        (DOUBT, LEDGER),
    ),
    Mutation(
        "divergence",
        "a token that comes again must be the same",
        "gateway/token_stream.py",
        "if had != came:",
        "if False:",
        (STREAM,),
    ),
    Mutation(
        "token-index",
        "a known index is not taken again",
        "gateway/token_stream.py",
        "if index < self.next_index:\n"
        "                self._compare(index, self.ids[index], token_id)\n"
        "            elif",
        "if",
        (STREAM,),
    ),
    Mutation(
        "token-order",
        "tokens beyond a gap wait",
        "gateway/token_stream.py",
        "while self.next_index in self._ahead:\n"
        "            token = self._ahead.pop(self.next_index)",
        "while self._ahead:\n            token = self._ahead.pop(min(self._ahead))",
        (STREAM,),
    ),
    Mutation(
        "token-limit",
        "no token beyond max_tokens is delivered",
        "gateway/token_stream.py",
        "min(self._limit, self.next_index + MAX_TOKENS_AHEAD)",
        "self.next_index + MAX_TOKENS_AHEAD",
        (LEDGER,),
    ),
    Mutation(
        "token-gap-bound",
        "what waits behind a gap is bounded",
        "gateway/token_stream.py",
        "min(self._limit, self.next_index + MAX_TOKENS_AHEAD)",
        "self._limit",
        (STREAM,),
    ),
    Mutation(
        "void-ahead",
        "what waited behind a gap is void in the next attempt",
        "gateway/token_stream.py",
        "self._ahead.clear()",
        "pass",
        (ATTEMPTS, MOVES),
    ),
    Mutation(
        "ending-index",
        "the end waits for the tokens before it",
        "gateway/live.py",
        "if ending is not None and request.stream.next_index >= ending.end_index:",
        "if ending is not None:",
        (LEDGER,),
    ),
    Mutation(
        "terminal-states",
        "nothing follows a terminal state",
        "tandem/states.py",
        "if following not in TRANSITIONS[current]:",
        "if False:",
        ("tests/tandem/test_states.py",),
    ),
    Mutation(
        "cancel-owner",
        "a client cancels its own requests only",
        "gateway/ledger.py",
        "if request is not None and request.new.client == client:",
        "if request is not None:",
        (LEDGER,),
    ),
    Mutation(
        "acknowledge-unknown",
        "nodes may forget what nobody wants",
        "gateway/emissions.py",
        "            if self.current(node, delta.request_id, delta.attempt) is None:\n"
        "                ended.append((delta.request_id, delta.attempt))\n",
        "",
        (LEDGER, ATTEMPTS),
    ),
)

FAILURES = (
    Mutation(
        "deadline",
        "a request ends at its deadline",
        "gateway/live.py",
        "if request.deadline is None or now < request.deadline:",
        "if True:",
        (LEDGER,),
    ),
    Mutation(
        "retry-budget",
        "three failed attempts are the end",
        "gateway/attempts.py",
        "if request.num_failures >= MAX_FAILURES:",
        "if False:",
        (ATTEMPTS,),
    ),
    Mutation(
        "retry-of-what-repeats",
        "what would fail again is not tried again",
        "gateway/attempts.py",
        "if failure.code not in RETRYABLE:",
        "if False:",
        (ATTEMPTS,),
    ),
    Mutation(
        "poison-limit",
        "a request that kills nodes is not tried for ever",
        "gateway/attempts.py",
        "if request.num_deaths > MAX_DEATHS:",
        "if False:",
        (FAIL_OVER,),
    ),
    Mutation(
        "deaths-are-no-failures",
        "a node's death is not held against its requests",
        "gateway/attempts.py",
        "request.num_failures += not (failure.is_death or failure.is_closed)",
        "request.num_failures += 1",
        (FAIL_OVER,),
    ),
    Mutation(
        "retry-turns",
        "retries take turns",
        "gateway/retries.py",
        "while self._waiting and len(self._in_flight) < most:",
        "while self._waiting:",
        (FAIL_OVER,),
    ),
    Mutation(
        "avoid-failed-nodes",
        "a fail-over names the nodes that failed",
        "gateway/request.py",
        "avoid=self.avoided,",
        "avoid=(),",
        (FAIL_OVER,),
    ),
    Mutation(
        "fail-over-waits",
        "who was running is not turned away by a passing refusal",
        "gateway/attempts.py",
        "if is_fail_over and now < request.asked_at + FAIL_OVER_WAIT_S:",
        "if False:",
        (FAIL_OVER, ATTEMPTS),
    ),
    Mutation(
        "fail-over-wait-ends",
        "a request does not wait for new nodes for ever",
        "gateway/attempts.py",
        "if is_fail_over and now < request.asked_at + FAIL_OVER_WAIT_S:",
        "if is_fail_over:",
        (ATTEMPTS, FAIL_OVER),
    ),
    Mutation(
        "ask-attempt",
        "before a new attempt the decode node is asked for the KV",
        "gateway/attempts.py",
        "attempt.doubt, attempt.answers = Doubt(now + DOUBT_S, failure), None\n"
        "            self._demands.ask_attempt(request.request_id, attempt, [attempt.decode], now)",
        "self.fail(request, failure, now)",
        (f"{DOUBT}::test_a_prefill_node_that_gives_up_is_doubted_like_a_dead_one",),
    ),
    Mutation(
        "doubt-ends",
        "a silent decode node is not waited for",
        "gateway/attempts.py",
        "if now >= attempt.doubt.until:",
        "if False:",
        (DOUBT,),
    ),
    Mutation(
        "unreachable-node",
        "a node that answers nothing costs the attempt",
        "gateway/attempts.py",
        "if now <= attempt.sent + ANSWER_TIMEOUT_S:",
        "if True:",
        (ATTEMPTS,),
    ),
    Mutation(
        "placed-on-the-dead",
        "a placement on a node known to be down is not used",
        "gateway/attempts.py",
        "        if down:\n            names",
        "        if False:\n            names",
        (ATTEMPTS,),
    ),
    Mutation(
        "late-placement",
        "a late answer of the coordinator starts nothing",
        "gateway/attempts.py",
        "if not _is_awaited(request, placed):",
        "if False:",
        (ATTEMPTS,),
    ),
    Mutation(
        "late-refusal",
        "a refusal of an earlier attempt ends nothing",
        "gateway/attempts.py",
        "return is_placing and answer.attempt == number",
        "return is_placing",
        (ATTEMPTS,),
    ),
    Mutation(
        "old-news",
        "news of an old epoch do not touch the new one",
        "gateway/demands.py",
        "return epoch <= self._down_epochs.get(node_id, -1)",
        "return node_id in self._down_epochs",
        (ATTEMPTS,),
    ),
    Mutation(
        "cancel-the-dead",
        "a node that went down is asked to cancel, and not for ever",
        "gateway/demands.py",
        "if now >= until]:",
        "if False]:",
        (ATTEMPTS,),
    ),
    Mutation(
        "adopted-by-current",
        "pages of a past attempt are not wanted",
        "gateway/ledger.py",
        "is_wanted=found is not None and found[1].is_decoder(node),",
        "is_wanted=True,",
        (DOUBT,),
    ),
    Mutation(
        "status-of-decoder",
        "only the decode node says whether it has the KV",
        "gateway/attempts.py",
        "if attempt.doubt is not None and attempt.is_decoder(node):",
        "if attempt.doubt is not None:",
        (DOUBT,),
    ),
    Mutation(
        "silence-of-decode",
        "a decode node that forgot a running request does not keep it for ever",
        "gateway/attempts.py",
        "        if now > attempt.heard_at + SILENCE_S:",
        "        if False:",
        (DOUBT,),
    ),
    Mutation(
        "silence-of-prompts",
        "nodes that forgot a waiting prompt do not keep it for ever",
        "gateway/attempts.py",
        "if attempt.answers is None and now > attempt.heard_at + SILENCE_S:",
        "if False:",
        (DOUBT,),
    ),
)

MOVING = (
    Mutation(
        "move-on-placed",
        "until a move is placed the old attempt goes on",
        "gateway/moves.py",
        "        request.move = Move(request.next_number(), attempt.decode, is_wished)\n",
        "        request.move = Move(request.next_number(), attempt.decode, is_wished)\n"
        "        self._live.demands.stop(request.request_id, attempt, attempt.nodes, now)\n",
        (MOVES,),
    ),
    Mutation(
        "move-elsewhere",
        "a place on the draining node, or a dead one, is none",
        "gateway/moves.py",
        "if is_nowhere or any(self._live.demands.is_down(node) for node in nodes):",
        "if False:",
        (MOVES,),
    ),
    Mutation(
        "moves-in-flight",
        "four requests move at once, no more",
        "gateway/moves.py",
        "return len(self._moving) >= MAX_MOVING",
        "return False",
        (MOVES,),
    ),
    Mutation(
        "move-refused-stays",
        "a refused move ends nothing",
        "gateway/ledger.py",
        "self._moves.refused(request, now)",
        "self._attempts.refused(request, answer, now)",
        (MOVES,),
    ),
    Mutation(
        "moves-are-no-failures",
        "a failed move is held against nobody",
        "gateway/attempts.py",
        "if not attempt.is_move:\n            request.num_deaths",
        "if True:\n            request.num_deaths",
        (MOVES,),
    ),
)

GUARDS = (*STREAMS, *FAILURES, *MOVING)
