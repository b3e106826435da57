"""Bounds on the ε of mechanisms together; asked by :mod:`common.accounting` alone."""
