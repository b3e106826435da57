"""A shop's side of secure aggregation: what it says at each stage, and what it will not say."""
