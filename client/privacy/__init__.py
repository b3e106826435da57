"""What makes a shop's update private: the plan's noise, the exact step, the ledger."""
