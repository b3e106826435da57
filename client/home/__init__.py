"""What a shop does at home with the model that came: its own parts, mixed in and never sent."""
