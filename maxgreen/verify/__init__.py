"""The pure verifier and the meter's arithmetic, the same for agent, ingest and audit."""
