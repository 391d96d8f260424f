"""What reward models are worth: their scores of preference pairs, of probes and of RewardBench."""

# The file of a directory that holds diagnoses (rlhf/evaluation/reward/result.py).
FILE = "diagnoses.json"
