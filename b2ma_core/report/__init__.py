"""Scores, tables and pictures, from records."""
