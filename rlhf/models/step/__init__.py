"""One new token of each row through a model, in few and large operators: layers.py what a layer does, families.py which
weights of a family it reads. transformers' code, written for whole sequences, launches two to four times as many."""
