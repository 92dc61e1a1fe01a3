"""Protocol version 1: every byte that leaves a process (docs/protocol.md)."""
