"""What scores responses: reward models, functions, and their weighted sum."""
