"""What a user reruns: a claim, its table, its figure."""
