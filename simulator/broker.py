"""The embedded broker: amqtt in a thread of its own, on the loopback interface."""

import asyncio
import logging
import socket
import threading
from typing import Any

from amqtt.broker import Broker

from maxgreen.errors import Fatal


class EmbeddedBroker:
    """Starts on a free port; `stop` ends it."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="broker", daemon=True)
        self._started = threading.Event()
        self._failed: Exception | None = None
        self._broker: Any = None

    def start(self) -> None:
        """Begin to listen; Fatal when the port is taken."""
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._thread.start()
        self._started.wait()
        if self._failed is not None:
            raise Fatal(f"embedded broker on port {self.port}: {self._failed}")

    def stop(self) -> None:
        """Close every connection and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._broker.shutdown(), self._loop).result(timeout=10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        try:
            self._broker = Broker(config, loop=self._loop)
            self._loop.run_until_complete(self._broker.start())
        except Exception as error:  # noqa: BLE001 - handed to the starting thread
            self._failed = error
            return
        finally:
            self._started.set()
        self._loop.run_forever()


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
