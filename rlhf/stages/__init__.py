"""One package for each kind of stage; its `__init__`, which imports no torch, defines KIND (rlhf/catalog/stage.py)."""
