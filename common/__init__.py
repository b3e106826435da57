"""The vocabulary that shops, server and simulations share."""
