"""A run on disk: its directory, what it was made with, its progress, and how it ends when it is interrupted."""
