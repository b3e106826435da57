"""Parts of ``python -m client``: what it parses, and what its terminal shows."""
