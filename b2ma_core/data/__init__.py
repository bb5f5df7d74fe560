"""Data sets as they lie on disk, checked and cached."""
