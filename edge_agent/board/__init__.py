"""What is wired to the Pi beside sensors: relay, tamper switch, status light."""
