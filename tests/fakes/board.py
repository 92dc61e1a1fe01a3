"""A board in memory: what GpioBoard does to pins, it does to attributes."""


class FakeBoard:
    has_relay = True

    def __init__(self):
        self.closed, self.tamper, self.lit, self.released = False, False, False, False
        self.history = []

    def connect(self, *, line):
        assert not self.released or not line, "the pins were given back"
        if line != self.closed:
            self.history.append(line)
        self.closed = line

    def tamper_open(self):
        assert not self.released, "the pins were given back"
        return self.tamper

    def light(self, *, on):
        self.lit = on

    def release(self):
        self.connect(line=False)
        self.lit, self.released = False, True
