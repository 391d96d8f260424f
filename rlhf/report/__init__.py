"""A sweep or a run as one HTML page and a few tables: `python -m rlhf report DIR`."""
