"""Home Assistant's MQTT discovery: the whole device in one retained message.

Energy is `total_increasing`, power is `measurement` (Home Assistant, developer documentation, sensor entity).
"""

from typing import Any, Final

from maxgreen import __version__
from maxgreen.protocol.batch import Birth, Role
from maxgreen.protocol.identity import device_topic

_NAMES: Final = {
    Role.GENERATION: "Generation",
    Role.SENT: "Sent",
    Role.RECEIVED: "Received",
    Role.DELIVERED: "Delivered",
    Role.TAKEN_OUT: "Taken out",
}


def discovery_topic(device: bytes) -> str:
    """Return the topic that Home Assistant reads a device's description from."""
    return f"homeassistant/device/{device.hex()}/config"


def discovery(device: bytes, birth: Birth) -> dict[str, Any]:
    """Return the description: power and energy of every channel, temperature, spool, alarms, online."""
    identity = f"mg_{device.hex()}"
    components: dict[str, dict[str, Any]] = {}
    for sensor in birth.sensors:
        name = f"{_NAMES[Role(sensor.role)]} {sensor.channel}"
        components[f"power_{sensor.channel}"] = {
            "p": "sensor",
            "name": f"{name} power",
            "dev_cla": "power",
            "stat_cla": "measurement",
            "unit_of_meas": "W",
            "val_tpl": f"{{{{ value_json.power_w['{sensor.channel}'] }}}}",
        }
        components[f"energy_{sensor.channel}"] = {
            "p": "sensor",
            "name": f"{name} energy",
            "dev_cla": "energy",
            "stat_cla": "total_increasing",
            "unit_of_meas": "kWh",
            "val_tpl": f"{{{{ value_json.energy_kwh['{sensor.channel}'] }}}}",
        }
    components["temperature"] = {
        "p": "sensor",
        "name": "Temperature",
        "dev_cla": "temperature",
        "stat_cla": "measurement",
        "unit_of_meas": "°C",
        "ent_cat": "diagnostic",
        "val_tpl": "{{ value_json.cpu_c }}",
    }
    components["spool"] = {
        "p": "sensor",
        "name": "Batches without a receipt",
        "stat_cla": "measurement",
        "ent_cat": "diagnostic",
        "val_tpl": "{{ value_json.spool }}",
    }
    components["problem"] = {
        "p": "binary_sensor",
        "name": "Problem",
        "dev_cla": "problem",
        "ent_cat": "diagnostic",
        "val_tpl": "{{ 'ON' if value_json.alarms else 'OFF' }}",
        "json_attr_t": device_topic(device, "state"),
        "json_attr_tpl": "{{ {'alarms': value_json.alarms} | tojson }}",
    }
    for component in components.values():  # gone with the agent, instead of the last value for ever
        component["avty"] = [
            {
                "t": device_topic(device, "status"),
                "val_tpl": "{{ value_json.status }}",
                "pl_avail": "online",
                "pl_not_avail": "offline",
            }
        ]
    components["online"] = {
        "p": "binary_sensor",
        "name": "Online",
        "dev_cla": "connectivity",
        "stat_t": device_topic(device, "status"),
        "val_tpl": "{{ value_json.status }}",
        "pl_on": "online",
        "pl_off": "offline",
    }
    for key, component in components.items():
        component["uniq_id"] = f"{identity}_{key}"
    return {
        "dev": {
            "ids": [identity],
            "name": f"Solar meter {device.hex()[:8]}",
            "mf": "MaxCoin Green Energy",
            "mdl": birth.hardware,
            "sw": birth.software,
        },
        "o": {"name": "maxgreen", "sw": __version__},
        "stat_t": device_topic(device, "state"),
        "qos": 1,
        "cmps": components,
    }
