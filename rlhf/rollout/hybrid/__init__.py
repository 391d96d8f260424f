"""Sampling on the weights that are trained, by a decode loop of our own: sampler.py, decoder.py, cache.py."""
