"""
Loopback ports which stay ours while nobody listens on them. Used by whatever a test may take down and up again.

A port that is merely "free" has two traps: another test may get it while our server is down, and a client that
connects to it then may be given that very port as its own and so talk to itself. A socket that is bound but does not
listen prevents both, and connecting to it is refused, which is what "down" looks like.
"""

import socket


class PortReservation:
    """Holds one TCP port of 127.0.0.1 until `close`. A server with SO_REUSEADDR may listen on it meanwhile."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(("127.0.0.1", port))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]

    def listen(self) -> socket.socket:
        """A new listening socket on the reserved port, for the caller to close."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        try:
            listener.bind(("127.0.0.1", self.port))
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        return listener

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()
