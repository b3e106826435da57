"""Secure aggregation: what shops and server share of the protocol that shows only a sum.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS),
figure 4 with its rounds against a malicious server. ``docs/secure-aggregation.md`` describes the
whole of it and what it protects from whom. Here is what both sides must agree on: primitives,
sharing, the roster, messages, and how a vector is encoded. A shop's side is
:mod:`client.secure_sum`, the server's :mod:`server.secure_sum`.
"""
