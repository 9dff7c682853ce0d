"""Where the ranks of one machine meet: a store that listens on the loopback interface alone. torch's own rendezvous listen on all."""

from __future__ import annotations

import socket

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from lightrft.errors import UserError

LOOPBACK = "127.0.0.1"
BACKEND = "lightrft-loopback"


def check_loopback() -> None:
    """torch's own store would try for five minutes.

    Raises:
        UserError: nothing can be reached over the loopback interface, as in a network namespace where nobody has brought it up.
    """
    try:
        with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname(), timeout=10):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"ranks meet at {LOOPBACK}, which cannot be reached here ({reason}); bring it up: ip link set lo up") from None


def loopback_store() -> TCPStore:
    """A store of this process, at a free port."""
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    port = listener.getsockname()[1]
    return TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


class LoopbackRendezvous(RendezvousHandler):
    """Of one agent. Its store is the ranks' too, so that no port is looked for that another process could take meanwhile."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._store = loopback_store()
        self._closed = False

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(PrefixStore(self._run_id, self._store), 0, 1, RendezvousStoreInfo(LOOPBACK, self._store.port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def register() -> str:
    """Makes it known to torchrun's agent. Returns its name there."""
    rendezvous_handler_registry.register(BACKEND, LoopbackRendezvous)
    return BACKEND
