"""What runs the federation's own apps on this machine: Flower's engine, or this process alone."""
