"""A TCP proxy on the loopback interface that makes a network what networks are: cut, slow, silent, or a stranger."""

import select
import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Passes TCP on: cut when told, not at all while `silent`, late by `delay_s` and not faster than `bytes_per_s`.

    As something else than what is expected: `be("refuses")`, `be("hangs")`, `be("rubbish")`, and `be("passes")` again.
    """

    def __init__(self, target, host="127.0.0.1"):
        self.target, self.pairs = (host, target), []
        self.silent, self.delay_s, self.bytes_per_s = False, 0.0, 0
        self.passed = 0
        self.port, self.mood = 0, "passes"
        self._listen()

    def _listen(self):
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=50)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def be(self, mood):
        """Be that for those who come, and end what is open."""
        before, self.mood = self.mood, mood
        if mood == "refuses":
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
        elif before == "refuses":
            self._listen()
        self.silent = mood == "hangs"
        if mood != "hangs":  # there, what is open is silent too
            self.cut()

    def _accept(self, listener):
        while True:
            try:
                ours, _ = listener.accept()
            except OSError:
                return
            if self.mood == "hangs":
                self.pairs.append((ours,))
                continue
            if self.mood == "rubbish":
                with suppress(OSError):
                    ours.sendall(b"\x00\xffwhat do you want?\r\n\r\n" * 20)
                    ours.shutdown(socket.SHUT_WR)
                self.pairs.append((ours,))
                continue
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
