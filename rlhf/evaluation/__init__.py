"""What trained models are worth: held-out answers of policies and what their scores tell."""
