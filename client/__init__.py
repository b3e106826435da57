"""One shop: its data, its private training, its ledger, its own adaptation."""
