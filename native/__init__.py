"""scrypt proof of work in C behind cffi: mining on the Pi, bulk checking on the server."""
