"""An I2C bus with an INA219 on it, register by register (TI SBOS448G); the real driver runs on it."""

RESET_CONFIG = 0x399F


class Ina219Bus:
    """Duck-typed busio.I2C: what Adafruit's driver calls."""

    def __init__(self, *, voltage=18.0, current=1.0, shunt_ohm=0.1, address=0x40):
        self.voltage, self.current, self.shunt_ohm, self.address = voltage, current, shunt_ohm, address
        self.present, self.config, self.calibration, self.pointer = True, RESET_CONFIG, 0, 0
        self._locked = False

    def brown_out(self):
        self.config, self.calibration = RESET_CONFIG, 0

    def scan(self):
        return [self.address] if self.present else []

    def try_lock(self):
        taken, self._locked = not self._locked, True
        return taken

    def unlock(self):
        self._locked = False

    def writeto(self, address, buffer, *, start=0, end=None):
        self._check(address)
        data = bytes(buffer[start:end])
        if not data:
            return
        self.pointer = data[0]
        if len(data) == 3:
            self._write(int.from_bytes(data[1:], "big"))

    def readfrom_into(self, address, buffer, *, start=0, end=None):
        self._check(address)
        end = len(buffer) if end is None else end
        size = end - start
        buffer[start:end] = (self._register() & (256**size - 1)).to_bytes(size, "big")

    def writeto_then_readfrom(self, address, out, into, *, out_start=0, out_end=None, in_start=0, in_end=None):
        self.writeto(address, out, start=out_start, end=out_end)
        self.readfrom_into(address, into, start=in_start, end=in_end)

    def _write(self, value):
        if self.pointer == 0:
            self.config = value
        elif self.pointer == 5:
            self.calibration = value & 0xFFFE

    def _register(self):
        shunt = round(self.current * self.shunt_ohm / 10e-6)
        limit = {0: 4000, 1: 8000, 2: 16000, 3: 32000}[self.config >> 11 & 3]
        shunt = max(-limit, min(limit, shunt))
        bus = min(round(self.voltage / 4e-3), (32 if self.config & 0x2000 else 16) * 250)
        return {0: self.config, 1: shunt & 0xFFFF, 2: bus << 3 | 0b10, 5: self.calibration}.get(self.pointer, 0)

    def _check(self, address):
        if not self.present or address != self.address:
            raise OSError(121, "Remote I/O error")
