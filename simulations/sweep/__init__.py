"""Price curves: one experiment at many points of ε and of customers a shop."""
