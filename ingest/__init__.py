"""MQTT consumer, verifier, ledger writer, receipts, beacons, InfluxDB projector, HTTP pages."""
