"""What an operator does with all services at once: look (`doctor`), back up, restore."""
