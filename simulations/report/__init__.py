"""A run's report: built from plain results, then answered, drawn, shown and held beside others."""
