"""Attacks on a federation's own private steps and trainings, held against what they promise."""
