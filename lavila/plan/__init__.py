"""What every step sees, in plain numpy."""
