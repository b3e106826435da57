"""Questions answered on one machine with the same apps that shops deploy."""
