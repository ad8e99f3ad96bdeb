"""``toprovar evaluate``: policies on the same prompts and seeds, quality beside FLOPs and latency."""
