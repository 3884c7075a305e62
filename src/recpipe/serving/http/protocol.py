"""HTTP connections and signals of the server: uvicorn with limits against slow clients, long headers and floods.

uvicorn alone waits without end for the rest of a request line or header, and ends with the status of the signal.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from recpipe.serving.http.guard import error_body

MAX_HEADER = 32_768  # bytes of request line and headers


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 connection that must send complete headers within ``client_timeout`` seconds.

    ``most``: connections at the same time; a further one is answered 503 and closed.
    """

    def __init__(self, *args: object, client_timeout: float, most: int, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._client_timeout, self._most = client_timeout, most
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0  # since the last complete headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first headers."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._refuse(503, f"{self._most} connections are open already (serve.connections)")
        else:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived; headers are limited in bytes and in time."""
        is_header = self.cycle is None or self.cycle.response_complete
        if is_header:
            self._header_bytes += len(data)
            if self._header_timer is None:
                self._start_timer()
        super().data_received(data)
        if is_header and self._header_bytes > MAX_HEADER and not self.transport.is_closing():
            self._refuse(431, f"request line and headers have more than {MAX_HEADER} bytes")

    def on_headers_complete(self) -> None:
        """Stop the time of the headers."""
        self._stop_timer()
        self._header_bytes = 0
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time of the headers."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(400, msg)

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._client_timeout, self._time_out)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _time_out(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            self._refuse(408, f"the headers did not arrive within {self._client_timeout:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        body = error_body(message)
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


class GracefulServer(uvicorn.Server):
    """Server that ends after SIGTERM or SIGINT when requests in progress are answered, as if nothing was wrong.

    A second signal ends it at once.
    """

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask the server to stop at a signal, without raising the signal again afterwards; in the main thread only."""
        loop = asyncio.get_running_loop()
        in_main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def protocol_class(*, client_timeout: float, connections: int) -> type[HttpToolsProtocol]:
    """Return the protocol with its limits, as uvicorn's option ``http``."""
    factory = partial(LimitedProtocol, client_timeout=client_timeout, most=connections)
    return factory  # type: ignore[return-value]
