"""Training: one loop that samples, grades, gates, estimates, steps and logs."""
