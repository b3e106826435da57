"""The registry: versioned models, each with its privacy statement, and which of them is served."""
