"""Tables of the contract as they come: files, columns, checks."""
