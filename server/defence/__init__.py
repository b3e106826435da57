"""What bad shops can't do under trust ``shop``: robust ways to put deltas together."""
