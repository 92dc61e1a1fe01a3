"""The view of the ledger that Grafana reads: InfluxDB, or any store that takes its lines."""
