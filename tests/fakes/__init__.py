"""One fake per adapter."""
