"""The real Adafruit drivers on register emulators: INA219 and INA228 pass the same suite."""

import pytest

from edge_agent.sensors.base import Electrical, SensorError
from edge_agent.sensors.calibrated import CalibratedSensor, calibration_id, correction
from edge_agent.sensors.ina219 import Ina219Sensor
from edge_agent.sensors.ina228 import Ina228Sensor
from tests.fakes.ina219_bus import RESET_CONFIG, Ina219Bus
from tests.fakes.ina228_bus import Ina228Bus

# part: bus emulator, sensor, volts above its limit, step of the voltage in µV, step of the shunt voltage in V
PARTS = {
    "INA219": (Ina219Bus, Ina219Sensor, 27.0, 4_000, 10e-6),
    "INA228": (Ina228Bus, Ina228Sensor, 86.0, 195.3125, 312.5e-9),
}


def sensor(bus, shunt_uohm=100_000):
    kind = Ina228Sensor if isinstance(bus, Ina228Bus) else Ina219Sensor
    return kind(lambda: bus, address=0x40, shunt_uohm=shunt_uohm)


@pytest.fixture(params=PARTS)
def part(request):
    return PARTS[request.param]


@pytest.mark.parametrize("shunt_ohm", [0.1, 0.01, 0.002])
@pytest.mark.parametrize(("voltage", "current"), [(18.0, 1.2345), (25.996, 1.6), (0.0, 0.0), (12.6, -0.05)])
def test_readings_are_those_of_the_registers_for_any_shunt(part, voltage, current, shunt_ohm):
    make, _, _, step_uv, step_v = part
    reading = sensor(make(voltage=voltage, current=current, shunt_ohm=shunt_ohm), round(shunt_ohm * 1e6)).read()
    assert abs(reading.voltage_uv - voltage * 1e6) <= step_uv / 2 + 1
    assert abs(reading.current_ua - current * 1e6) <= 1e6 * step_v / shunt_ohm / 2 + 1


def test_saturation_is_a_fault_and_never_a_clipped_value(part):
    make, kind, too_high, _, _ = part
    limit_a = kind(None, address=0x40, shunt_uohm=100_000).full_scale.current_ua / 1e6
    for current in (limit_a * 1.01, -limit_a * 1.01):
        with pytest.raises(SensorError, match="saturated"):
            sensor(make(current=current)).read()
    with pytest.raises(SensorError, match="saturated"):
        sensor(make(voltage=too_high)).read()


def test_a_brown_out_is_noticed_and_configured_again(part):
    bus = part[0]()
    chip = sensor(bus)
    first = chip.read()
    bus.brown_out()
    with pytest.raises(SensorError, match="brown-out"):
        chip.read()
    assert chip.read() == first


def test_an_ina219_is_told_to_average():
    bus = Ina219Bus()
    sensor(bus).read()
    assert bus.config != RESET_CONFIG


def test_a_chip_that_is_away_says_where_to_look_and_comes_back(part):
    make, kind, *_ = part
    bus = make()
    bus.present = False
    chip = sensor(bus)
    with pytest.raises(SensorError, match="check wiring and address"):
        chip.read()
    bus.present = True
    assert abs(chip.read().voltage_uv - 18_000_000) < 200
    bus.present = False
    with pytest.raises(SensorError, match=chip.part):
        chip.read()
    bus.present = True
    assert abs(chip.read().voltage_uv - 18_000_000) < 200
    with pytest.raises(SensorError, match="check wiring and address"):
        kind(lambda: make(address=0x41), address=0x40, shunt_uohm=100_000).read()


def test_a_bus_that_cannot_be_opened_is_a_fault_that_may_pass():
    from edge_agent.sensors.bus import i2c_bus

    with pytest.raises(SensorError, match="I2C bus 250.*raspi-config"):
        Ina219Sensor(i2c_bus(250), address=0x40, shunt_uohm=100_000).read()


@pytest.mark.parametrize(("counted_w", "agrees"), [(18.0, True), (18.3, True), (25.0, False), (10.0, False)])
def test_an_ina228s_accumulator_checks_what_the_samples_integrate_to(caplog, counted_w, agrees):
    bus, now = Ina228Bus(), [0.0]
    chip = Ina228Sensor(lambda: bus, address=0x40, shunt_uohm=100_000, now_s=lambda: now[0])
    for _ in range(200):
        chip.read()
        now[0] += 1
        bus.energy_j += counted_w
    assert chip.disagrees is not agrees
    assert len(caplog.records) == (not agrees)
    bus.brown_out()
    with pytest.raises(SensorError):
        chip.read()
    for _ in range(130):
        chip.read()
        now[0] += 1
        bus.energy_j += 18.0
    assert not chip.disagrees


@pytest.mark.parametrize(("gain", "offset_ua"), [(1.0, 0), (1.012, 1_500), (0.985, -800)])
def test_two_points_correct_gain_and_offset(gain, offset_ua):
    true = (50_000, 2_000_000)
    read = [round((current - offset_ua) / gain) for current in true]
    gain_ppm, offset = correction((read[0], true[0]), (read[1], true[1]))
    bus = Ina219Bus(current=round((1_000_000 - offset_ua) / gain) / 1e6)
    corrected = CalibratedSensor(sensor(bus), gain_ppm=gain_ppm, offset_ua=offset)
    assert abs(corrected.read().current_ua - 1_000_000) < 120  # one step of the chip
    assert (corrected.part, corrected.full_scale) == ("INA219", sensor(bus).full_scale)


def test_points_that_are_too_near_are_refused():
    with pytest.raises(ValueError, match="10 mA apart"):
        correction((50_000, 50_000), (55_000, 55_000))


def test_a_calibration_id_names_day_and_data():
    points = [(1, 2), (3, 4)]
    assert calibration_id(points, 1_767_225_600).startswith("20260101-")
    assert calibration_id(points, 1_767_225_600) != calibration_id([(1, 2), (3, 5)], 1_767_225_600)


class Glitch:
    """One answer of the bus that is not what the chip said."""

    def __init__(self, bus, nth, value):
        self.count, self.nth, self.value, self.pointer = 0, nth, value, None
        self.original, self.bus = bus._register, bus
        bus._register = self

    def __call__(self):
        found = self.original()
        self.count += 1
        if self.count != self.nth:
            return found
        self.pointer = self.bus.pointer
        return self.value(found)


DATA = {1, 2, 4, 5, 9}  # registers that hold what is measured, of either chip


@pytest.mark.parametrize("value", [lambda _v: 0, lambda _v: 0xFFFFFF, lambda v: v ^ 1, lambda v: v ^ 0x8000])
def test_no_glitch_of_any_read_outlasts_the_next_readings(part, value):
    make, _, _, step_uv, step_v = part
    for nth in range(1, 40):
        bus = make(voltage=24.0, current=1.2)
        glitch = Glitch(bus, nth, value)
        chip = sensor(bus)
        wrong = []
        for k in range(20):
            try:
                reading = chip.read()
            except SensorError:
                continue
            off = (
                abs(reading.voltage_uv - 24_000_000) > step_uv or abs(reading.current_ua - 1_200_000) > 1e7 * step_v + 1
            )
            if off:
                wrong.append(k)
        # a reading is wrong only where the reading itself was garbled, and never twice
        assert len(wrong) <= (glitch.pointer in DATA), (nth, glitch.pointer, wrong)
        last = chip.read()
        assert abs(last.voltage_uv - 24_000_000) <= step_uv
        assert abs(last.current_ua - 1_200_000) <= 1e7 * step_v + 1


def test_electrical_readings_are_whole_microunits():
    assert sensor(Ina219Bus()).read() == Electrical(18_000_000, 1_000_000)
