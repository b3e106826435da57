"""What all agree on beside the features: columns that describe, what shops stock, versions."""
