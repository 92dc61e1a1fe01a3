"""Where samples come from: real chips, or a measured trace."""
