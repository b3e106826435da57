"""A shop's own data: where they lie, how they are read, and what is to be known of them."""
