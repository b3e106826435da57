"""Whom and what nobody knows yet, measured: a customer, a product and a shop."""
