"""Bad shops in a federation: what they send, and what it does to the model, defended or not."""
