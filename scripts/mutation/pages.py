"""Guards of the page transports: checksums, grants over zmq, shared memory, admission."""

from scripts.mutation.mutation import Mutation

BULK = "tests/kv_transfer/test_bulk.py"
ZMQ = "tests/kv_transfer/test_zmq_pages.py"
READS = "tests/kv_transfer/test_zmq_reads.py"
DOOR = "tests/kv_transfer/test_door.py"
SHARED = "tests/kv_transfer/test_shared_memory.py"
WRITERS = "tests/kv_transfer/test_writers.py"
EXCHANGE = "tests/kv_transfer/test_exchange.py"
HANDSHAKE = "tests/kv_transfer/test_handshake.py"

BYTES = (
    Mutation(
        "checksum",
        "pages are what the writer hashed",
        "kv_transfer/checksum.py",
        "if self._hasher.chunk_sum() != chunk:",
        "if False:",
        (BULK,),
    ),
    Mutation(
        "checksum-identity",
        "right bytes of another request do not verify",
        "kv_transfer/checksum.py",
        "self._hash.update(_IDENTITY.pack(key[0], key[1], grant_id, first, num_pages))",
        "pass",
        (BULK,),
    ),
    Mutation(
        "read-checksum",
        "what was read is what was asked for",
        "kv_transfer/zmq_reads.py",
        "if read_sum(request.grant_id, request.pages, request.offset, part) != answer.checksum:",
        "if False:",
        (READS,),
    ),
    Mutation(
        "read-identity",
        "right bytes of another grant are not believed",
        "kv_transfer/checksum.py",
        "_READ_IDENTITY.pack(grant_id, offset, len(pages))",
        "_READ_IDENTITY.pack(0, offset, len(pages))",
        (READS,),
    ),
    Mutation(
        "page-bounds",
        "no page outside a pool is touched",
        "kv_transfer/transport.py",
        "if not 0 <= page < limit:",
        "if False:",
        (BULK,),
    ),
    Mutation(
        "peer-incarnation",
        "a restarted owner gets nothing that its predecessor granted",
        "kv_transfer/bulk.py",
        "if peer is not None and peer.incarnation == owner.incarnation:",
        "if peer is not None:",
        (BULK,),
    ),
    Mutation(
        "stop-ends-copies",
        "after a stop no page of the transfer is touched",
        "kv_transfer/transport.py",
        "self._copies = deque(copy for copy in self._copies if copy.request.key != key)",
        "pass",
        (BULK,),
    ),
)

OVER_ZMQ = (
    Mutation(
        "chunk-writer",
        "another peer cannot write into a grant",
        "kv_transfer/zmq_receiver.py",
        "        reception = self._open.get(chunk.grant_id)\n"
        "        if reception is None or reception.grant.writer != writer:",
        "        reception = self._open.get(chunk.grant_id)\n        if reception is None:",
        (ZMQ,),
    ),
    Mutation(
        "chunk-bounds",
        "a chunk outside the grant is refused",
        "kv_transfer/zmq_receiver.py",
        "if not (is_run or is_part) or num_bytes == 0 or end > len(pages) * self._page_bytes:",
        "if False:",
        (ZMQ,),
    ),
    Mutation(
        "chunks-complete",
        "missing bytes do not verify",
        "kv_transfer/zmq_receiver.py",
        "if reception.num_received == num_bytes:",
        "if True:",
        (ZMQ,),
    ),
    Mutation(
        "chunk-counted-once",
        "a repeated chunk stands for no missing one",
        "kv_transfer/zmq_receiver.py",
        "if chunk.start not in reception.starts:",
        "if True:",
        (ZMQ,),
    ),
    Mutation(
        "read-writer",
        "another peer reads nothing under a grant",
        "kv_transfer/zmq_receiver.py",
        "        reception = self._open.get(request.grant_id)\n"
        "        if reception is None or reception.grant.writer != writer:",
        "        reception = self._open.get(request.grant_id)\n        if reception is None:",
        (ZMQ,),
    ),
    Mutation(
        "readable-pages",
        "only pages of the grant's prefix can be read",
        "kv_transfer/zmq_receiver.py",
        "        if foreign:\n",
        "        if False:\n",
        (ZMQ,),
    ),
    Mutation(
        "bulk-key-of-identity",
        "a known key under another's identity writes nothing",
        "kv_transfer/zmq_receiver.py",
        "return writer if self.door.writer_of(key) == writer else None",
        "return writer",
        (DOOR,),
    ),
    Mutation(
        "bulk-door",
        "an unknown key gets nowhere",
        "kv_transfer/door.py",
        'return key if key in self._writers else b""',
        "return key",
        (DOOR,),
    ),
    Mutation(
        "bulk-zap-domain",
        "nobody gets in while nobody guards the door",
        "kv_transfer/zmq_frames.py",
        "socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)",
        "socket.set(zmq.ZAP_ENFORCE_DOMAIN, 0)",
        (DOOR,),
    ),
    Mutation(
        "bulk-frame-size",
        "a frame over the limit never reaches us",
        "kv_transfer/zmq_frames.py",
        "socket.set(zmq.MAXMSGSIZE, MAX_CHUNK_BYTES + 4096)",
        "pass",
        (ZMQ,),
    ),
    Mutation(
        "credit",
        "what is on its way to an owner is bounded",
        "kv_transfer/zmq_pages.py",
        "return len(self._owner_of) + self._reads.num_asked < NUM_CREDITS",
        "return True",
        (ZMQ,),
    ),
    Mutation(
        "stopped-memory",
        "what ZeroMQ may still send is not written over",
        "kv_transfer/zmq_pages.py",
        "del self._owner_of[(request.grant_id, start)]",
        "self._staging.give_back(write.unacked[start]); "
        "del self._owner_of[(request.grant_id, start)]",
        (ZMQ,),
    ),
    Mutation(
        "stalled-owner",
        "a silent owner fails the write",
        "kv_transfer/zmq_pages.py",
        "if self._is_busy() and now - self._progress_at > STALL_S:",
        "if False:",
        (ZMQ,),
    ),
)

SHARING = (
    Mutation(
        "sealed-by-owner",
        "the size of a shared pool is sealed",
        "kv_transfer/shared_memory.py",
        "fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)",
        "pass",
        (SHARED,),
    ),
    Mutation(
        "sealed-for-writer",
        "an unsealed pool is not mapped",
        "kv_transfer/shared_memory.py",
        "if size < num_bytes or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & SEALS != SEALS:",
        "if size < num_bytes:",
        (SHARED,),
    ),
    Mutation(
        "no-child-mapping",
        "children of a writer cannot write after it died",
        "kv_transfer/shared_memory.py",
        "        mapping.madvise(mmap.MADV_DONTFORK)\n",
        "",
        (f"{SHARED}::test_a_forked_child_has_no_mapping",),
    ),
    Mutation(
        "no-child-of-owner",
        "children of an owner have no mapping either",
        "kv_transfer/shared_memory.py",
        "        self._map.madvise(mmap.MADV_DONTFORK)\n",
        "",
        (f"{SHARED}::test_a_forked_child_has_no_mapping",),
    ),
    Mutation(
        "uid-of-asker",
        "another user's process gets no pool",
        "kv_transfer/handover.py",
        "if uid != os.getuid():",
        "if False:",
        (SHARED,),
    ),
    Mutation(
        "uid-of-server",
        "another user's pool is not mapped",
        "kv_transfer/handover.py",
        "if _peer(connection)[1] != os.getuid():",
        "if False:",
        (SHARED,),
    ),
    Mutation(
        "handed-to-admitted",
        "only an admitted process gets the descriptor",
        "kv_transfer/handover.py",
        "        if is_taken:\n            descriptor",
        "        if True:\n            descriptor",
        (SHARED,),
    ),
    Mutation(
        "one-process-per-identity",
        "one process each may map under an identity",
        "kv_transfer/writers.py",
        "if writer is None or writer.pid not in (None, pid):",
        "if writer is None:",
        (WRITERS,),
    ),
    Mutation(
        "mapped-needs-process",
        "mapped memory needs a process that was noted",
        "kv_transfer/writers.py",
        "if writer is None or (transport in MAPPED and writer.pid is None):",
        "if writer is None:",
        (WRITERS,),
    ),
    Mutation(
        "choice-for-life",
        "a choice of transport holds for the life of the process",
        "kv_transfer/writers.py",
        "if writer.transport not in (None, transport):",
        "if False:",
        (WRITERS,),
    ),
    Mutation(
        "bulk-key-for-life",
        "a bulk key holds for the life of the process",
        "kv_transfer/writers.py",
        'return None if writer.key == key else "it came with another key before"',
        "return None",
        (WRITERS,),
    ),
    Mutation(
        "mappers-not-forgotten",
        "a process that maps the pool is never forgotten",
        "kv_transfer/writers.py",
        "if writer.pid is None), None)",
        "if True), None)",
        (WRITERS,),
    ),
    Mutation(
        "writer-identity",
        "a writer greets under its own identity only",
        "kv_transfer/exchange.py",
        'if writer != peer_identity("node", hello.node_id, hello.incarnation):',
        "if False:",
        (EXCHANGE,),
    ),
    Mutation(
        "same-model",
        "nodes of other weights exchange no pages",
        "kv_transfer/handshake.py",
        "if here != there:",
        "if False:",
        (HANDSHAKE,),
    ),
    Mutation(
        "same-layout",
        "nodes of other page layouts exchange no pages",
        "kv_transfer/handshake.py",
        "reason = owner.layout.explain_difference(hello.layout)",
        "reason = None",
        (HANDSHAKE,),
    ),
    Mutation(
        "same-host",
        "memory is not shared across hosts",
        "kv_transfer/handshake.py",
        "        and (is_same_host or transport not in SAME_HOST_ONLY)\n",
        "",
        (HANDSHAKE,),
    ),
)

GUARDS = (*BYTES, *OVER_ZMQ, *SHARING)
