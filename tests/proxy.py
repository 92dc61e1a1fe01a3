"""A TCP proxy on the loopback interface that makes a network what networks are: cut, slow, or silent."""

import select
import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Passes TCP on: cut when told, not at all while `silent`, late by `delay_s` and not faster than `bytes_per_s`."""

    def __init__(self, target, host="127.0.0.1"):
        self.target, self.pairs = (host, target), []
        self.silent, self.delay_s, self.bytes_per_s = False, 0.0, 0
        self.passed = 0
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(20)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                ours, _ = self.listener.accept()
            except OSError:
                return
            try:
                theirs = socket.create_connection(self.target, timeout=5)
            except OSError:
                ours.close()
                continue
            self.pairs.append((ours, theirs))
            threading.Thread(target=self._pass, args=(ours, theirs), daemon=True).start()

    def _pass(self, ours, theirs):
        try:
            while True:
                for one in select.select([ours, theirs], [], [], 0.1)[0]:
                    while self.silent:
                        time.sleep(0.02)
                    data = one.recv(4_096 if self.bytes_per_s else 65_536)
                    if not data:
                        raise OSError
                    if self.delay_s or self.bytes_per_s:
                        time.sleep(self.delay_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0))
                    (theirs if one is ours else ours).sendall(data)
                    self.passed += len(data)
        except (OSError, ValueError):
            for one in (ours, theirs):
                one.close()

    def cut(self):
        """End every connection that is open."""
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            for one in pair:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Take no more, and end what is open."""
        self.silent = False
        self.listener.close()
        self.cut()
