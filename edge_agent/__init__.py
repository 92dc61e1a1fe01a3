"""Runs on the Pi: sensors, meter, work, key store, spool, uplink, service."""
