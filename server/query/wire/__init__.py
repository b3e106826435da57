"""The gRPC contract and the code that grpcio-tools generated from it; see ``make proto``."""
