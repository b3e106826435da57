"""The operator's federation: its folder, certificates, shops, services, and what runs."""
