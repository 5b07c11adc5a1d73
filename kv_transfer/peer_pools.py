"""Opens an owner's pool over the transport of an offer, as this node's memory allows."""

import zmq

from kv_transfer.checksum import HostPages, OwnPages
from kv_transfer.cuda_ipc import CudaPages
from kv_transfer.cuda_peer import open_cuda_pool
from kv_transfer.inproc import InprocPools
from kv_transfer.shared_memory import map_pool
from kv_transfer.transport import PeerPool
from kv_transfer.zmq_frames import CurveKeys
from kv_transfer.zmq_pages import ZmqPool
from tandem.messages.handoff import TransportOffer


class PeerPools:
    """Opens pools for one node, on any thread."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        own: OwnPages,
        *,
        identity: bytes,
        inproc: InprocPools | None,
        keys: CurveKeys | None,
    ) -> None:
        self._context = context
        self._own = own
        self._identity = identity
        self._inproc = inproc
        self._keys = keys

    def open(self, offer: TransportOffer, num_pages: int) -> PeerPool:
        """ValueError where it cannot be opened from here."""
        own, address = self._own, offer.address
        if offer.transport == "cuda_ipc" and isinstance(own, CudaPages):
            return open_cuda_pool(own, address, num_pages, self._identity)
        if not isinstance(own, HostPages):
            raise ValueError(f"pages on a GPU cannot be written over {offer.transport!r}")
        if offer.transport == "shared_memory":
            return map_pool(own.pages, address, num_pages, self._identity)
        if offer.transport == "zmq":
            return ZmqPool(
                self._context,
                own.pages,
                identity=self._identity,
                address=address,
                keys=self._keys,
                server_key=offer.key,
            )
        if offer.transport == "inproc" and self._inproc is not None:
            return self._inproc.open(own.pages, address, num_pages)
        raise ValueError(f"this node cannot write pages over {offer.transport!r}")
