"""Exchanges with the shops: who is asked, how replies are taken, and what a good one is."""
