"""What a shop answers in each round, and how it says nothing more."""
