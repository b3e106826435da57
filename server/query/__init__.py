"""The model served: one scoring core behind gRPC, REST and the page."""
