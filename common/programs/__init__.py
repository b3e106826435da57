"""Other programs: started in a clean environment, watched, kept running and ended."""
