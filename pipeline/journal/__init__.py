"""What was run, what it cost, and how MLflow learns of it."""
