"""A broker connection in memory."""

import queue

from edge_agent.uplink import Acknowledged, Connected, Disconnected, Incoming


class FakeLink:
    def __init__(self):
        self.notices = queue.SimpleQueue()
        self.sent = []
        self.up = False
        self._packet = 0

    def start(self):
        self.connect()

    def connect(self):
        self.up = True
        self.notices.put(Connected())

    def disconnect(self):
        self.up = False
        self.notices.put(Disconnected())

    def publish(self, topic, payload, *, retain):
        if not self.up:
            return None
        self._packet += 1
        self.sent.append((topic, payload))
        self.notices.put(Acknowledged(self._packet))
        return self._packet

    def deliver(self, topic, payload):
        self.notices.put(Incoming(topic, payload))

    def stop(self):
        self.up = False

    def batches(self):
        return [payload for topic, payload in self.sent if topic.endswith("/batch")]
