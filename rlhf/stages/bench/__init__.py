"""How fast step 3 is, on random weights and random tokens: what `python -m rlhf bench` and stage=bench are made of."""
