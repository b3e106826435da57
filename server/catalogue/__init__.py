"""The catalogue's versions: published from tables, compared, shown, and handed to shops."""
