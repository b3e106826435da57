"""How a shop joins a federation: its keys, the code it approves, and its programs."""
