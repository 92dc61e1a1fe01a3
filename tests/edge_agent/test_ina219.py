"""The real Adafruit driver on a register emulator."""

import pytest

from edge_agent.sensors.base import Electrical, SensorError
from edge_agent.sensors.ina219 import Ina219Sensor
from tests.fakes.ina219_bus import RESET_CONFIG, Ina219Bus


def sensor(bus, shunt_uohm=100_000):
    return Ina219Sensor(lambda: bus, address=0x40, shunt_uohm=shunt_uohm)


@pytest.mark.parametrize("shunt_ohm", [0.1, 0.01, 0.002])
@pytest.mark.parametrize(("voltage", "current"), [(18.0, 1.2345), (25.996, 3.0), (0.0, 0.0), (12.6, -0.05)])
def test_readings_are_those_of_the_registers_for_any_shunt(voltage, current, shunt_ohm):
    bus = Ina219Bus(voltage=voltage, current=current, shunt_ohm=shunt_ohm)
    reading = sensor(bus, round(shunt_ohm * 1e6)).read()
    assert reading.voltage_uv == round(voltage * 250) * 4_000
    assert abs(reading.current_ua - current * 1e6) <= 10 / shunt_ohm
    assert reading.current_ua == round(current * shunt_ohm / 10e-6) * 10 * 10**6 // round(shunt_ohm * 1e6)


def test_saturation_is_a_fault_and_never_a_clipped_value():
    with pytest.raises(SensorError, match="saturated"):
        sensor(Ina219Bus(current=3.3)).read()
    with pytest.raises(SensorError, match="saturated"):
        sensor(Ina219Bus(voltage=27)).read()


def test_a_brown_out_is_noticed_and_configured_again():
    bus = Ina219Bus()
    chip = sensor(bus)
    chip.read()
    assert bus.config != RESET_CONFIG
    bus.brown_out()
    with pytest.raises(SensorError, match="brown-out"):
        chip.read()
    assert chip.read() == Electrical(18_000_000, 1_000_000)


def test_an_absent_chip_says_where_to_look_and_comes_back():
    bus = Ina219Bus()
    chip = sensor(bus)
    bus.present = False
    with pytest.raises(SensorError, match="INA219"):
        chip.read()
    bus.present = True
    assert chip.read().voltage_uv == 18_000_000
    with pytest.raises(SensorError, match="check wiring and address"):
        Ina219Sensor(lambda: Ina219Bus(address=0x41), address=0x40, shunt_uohm=100_000).read()
