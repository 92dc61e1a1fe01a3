"""An I2C bus with an INA228 on it, register by register (TI SBOSA20); the real driver runs on it."""

from tests.fakes.ina219_bus import Ina219Bus


class Ina228Bus(Ina219Bus):
    """What Adafruit's driver calls; `energy_j` is what the accumulator holds."""

    def __init__(self, *, voltage=18.0, current=1.0, shunt_ohm=0.1, address=0x40):
        super().__init__(voltage=voltage, current=current, shunt_ohm=shunt_ohm, address=address)
        self.brown_out()

    def brown_out(self):
        self.registers = {0x00: 0, 0x01: 0xFB68, 0x02: 0x1000}
        self.energy_j = 0.0

    def _write(self, value):
        self.registers[self.pointer] = value
        if self.pointer == 0 and value & 0x8000:
            self.brown_out()

    def _register(self):
        shunt = max(-(2**19), min(2**19 - 1, round(self.current * self.shunt_ohm / 312.5e-9)))
        current_lsb = self.registers[2] / (13107.2e6 * self.shunt_ohm)
        return {
            0x04: shunt << 4,
            0x05: min(2**20 - 1, round(self.voltage / 195.3125e-6)) << 4,
            0x09: round(self.energy_j / (16 * 3.2 * current_lsb)),
            0x3E: 0x5449,
            0x3F: 0x2281,
        }.get(self.pointer, self.registers.get(self.pointer, 0))
