"""Clients that do nothing: what a round of Flower costs by itself."""
