"""What things cost, side by side with their floors: rounds, steps, sums, deployments, answers."""
