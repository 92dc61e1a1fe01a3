"""The ledger: verified batches verbatim, rejected ones with their reason, and what follows from them."""
