"""Talking to models: one conversation at a time, on the terminal, as a page, or over HTTP."""
