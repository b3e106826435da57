"""A whole federation of real programs on this machine, brought up and taken down."""
