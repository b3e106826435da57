"""What containers need beside the packages themselves."""
