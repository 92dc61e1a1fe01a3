"""What pages and the API show: plain values, made from ledger, evidence and chain."""
