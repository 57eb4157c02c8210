"""Routes, the live run, and messages in the user's language."""
