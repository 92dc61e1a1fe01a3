"""The contracts, and one client for any EIP-1559 chain that they run on."""
