"""Guards between clients and gateway: sessions, acknowledgements, limits, tenants."""

from scripts.mutation.mutation import Mutation

CLIENTS = "tests/gateway/test_clients.py"
STORM = "tests/gateway/test_clients_storm.py"
ROOM = "tests/gateway/test_room.py"
TENANTS = "tests/gateway/test_tenants.py"
ADMISSION = "tests/gateway/test_admission.py"

SESSIONS = (
    Mutation(
        "session-owner",
        "only the identity that holds a session speaks for it",
        "gateway/clients.py",
        "if session is None or session.client != client:",
        "if session is None:",
        (CLIENTS, STORM),
    ),
    Mutation(
        "resume-key",
        "a request is resumed only under its key",
        "gateway/clients.py",
        "if session is None or session.key != self._key_of(client):",
        "if session is None:",
        (CLIENTS,),
    ),
    Mutation(
        "received-to-forget",
        "an end is kept until the client has it",
        "gateway/clients.py",
        "            yield ToClient(session.client, session.done)\n",
        "            yield ToClient(session.client, session.done)\n"
        "            self._drop(session.accepted.request_id)\n",
        (CLIENTS,),
    ),
    Mutation(
        "end-is-repeated",
        "an end is said again until it is confirmed",
        "gateway/clients.py",
        "if session.done_sent_at is None or now >= session.done_sent_at + DONE_EVERY_S:",
        "if session.done_sent_at is None:",
        (CLIENTS,),
    ),
    Mutation(
        "silent-client",
        "the request of a silent client is cut",
        "gateway/clients.py",
        '        if is_silent:\n            text = f"its client said',
        '        if False:\n            text = f"its client said',
        (CLIENTS,),
    ),
    Mutation(
        "slow-client",
        "the request of a client that takes nothing is cut",
        "gateway/clients.py",
        "elif session.stuck_since is not None and now - session.stuck_since > STUCK_S:",
        "elif False:",
        (CLIENTS,),
    ),
    Mutation(
        "client-window",
        "what is on its way to a client is bounded",
        "gateway/backlog.py",
        "if self.is_all_sent or self.num_flying_bytes >= window_bytes:",
        "if self.is_all_sent:",
        (CLIENTS,),
    ),
    Mutation(
        "finished-sessions-bound",
        "finished requests are kept up to a bound",
        "gateway/clients.py",
        "if not is_over and len(self._finished) <= limits.max_finished:",
        "if True:",
        (CLIENTS,),
    ),
    Mutation(
        "all-sessions-bound",
        "all sessions together are bounded",
        "gateway/clients.py",
        "        if num_bytes > limits.max_bytes:\n            largest",
        "        if False:\n            largest",
        (CLIENTS,),
    ),
    Mutation(
        "resume-grace",
        "finished requests are forgotten after the grace",
        "gateway/clients.py",
        "elif now - session.done_at > GRACE_S:",
        "elif False:",
        (CLIENTS,),
    ),
    Mutation(
        "replay-from-kept",
        "a replay never begins after tokens that are forgotten",
        "gateway/backlog.py",
        "if next_index < self._kept_from:",
        "if False:",
        (CLIENTS,),
    ),
    Mutation(
        "resume-pace",
        "replays are not to be had as often as asked",
        "gateway/clients.py",
        "if session.resumed_at is not None and now < session.resumed_at + RESUME_EVERY_S:",
        "if False:",
        (CLIENTS,),
    ),
    Mutation(
        "client-gap",
        "a client takes no token out of order",
        "tandem/inbox.py",
        "if output.index > self.next_index:\n            return None",
        "if False:\n            return None",
        ("tests/tandem/test_inbox.py",),
    ),
    Mutation(
        "client-repeats",
        "a client takes no token twice",
        "tandem/inbox.py",
        "return () if is_known else None",
        "pass",
        ("tests/tandem/test_inbox.py",),
    ),
    Mutation(
        "client-end",
        "a client misses nothing before the end",
        "tandem/inbox.py",
        "if done.usage.num_output_tokens > self.next_index:",
        "if False:",
        ("tests/tandem/test_inbox.py",),
    ),
)

LIMITS = (
    Mutation(
        "live-requests",
        "a gateway takes so many requests and no more",
        "gateway/room.py",
        "if len(self._held) >= self._max_live:",
        "if False:",
        (ROOM,),
    ),
    Mutation(
        "prompt-bytes",
        "prompts in flight are bounded by their bytes",
        "gateway/room.py",
        "if self.num_bytes + num_bytes > self._max_bytes:",
        "if False:",
        (ROOM,),
    ),
    Mutation(
        "fair-share",
        "where it is tight each tenant keeps to its share",
        "gateway/room.py",
        "if is_contended and held > 0 and held + more > share * limit:",
        "if False:",
        (ROOM,),
    ),
    Mutation(
        "tenant-limit",
        "a tenant's own limit holds",
        "gateway/room.py",
        "if max_live is not None and use.num_live >= max_live:",
        "if False:",
        (ROOM,),
    ),
    Mutation(
        "tenant-rate",
        "a tenant's rate holds",
        "gateway/tenants.py",
        "if self._level >= 1 - 1e-9:",
        "if True:",
        (TENANTS,),
    ),
    Mutation(
        "no-new-burst",
        "new settings are no new burst",
        "gateway/tenants.py",
        "bucket.adopt(before[name])",
        "pass",
        (TENANTS,),
    ),
    Mutation(
        "tenant-classes",
        "a tenant uses its own classes only",
        "gateway/tenants.py",
        "if submit.sla_class not in classes:",
        "if False:",
        (TENANTS,),
    ),
    Mutation(
        "prompt-ids",
        "token ids are the model's",
        "gateway/admission.py",
        "if lowest < 0 or highest >= offer.vocab_size:",
        "if False:",
        (ADMISSION,),
    ),
    Mutation(
        "resume-seed",
        "a stream is resumed under its own seed only",
        "gateway/admission.py",
        "if params.seed is None:",
        "if False:",
        (ADMISSION,),
    ),
    Mutation(
        "tenant-in-prefixes",
        "tenants' routing prefixes never match",
        "gateway/prefixes.py",
        "tenant=tenant,",
        'tenant="",',
        ("tests/gateway/test_ledger_prefixes.py",),
    ),
)

GUARDS = (*SESSIONS, *LIMITS)
