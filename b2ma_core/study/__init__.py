"""A run: its folder, its trainings, its records."""
