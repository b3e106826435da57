"""Training runs as the operator sees them: planned, asked for, followed and published."""
