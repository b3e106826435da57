"""The server's side of secure aggregation: it passes messages on, and learns one sum."""
