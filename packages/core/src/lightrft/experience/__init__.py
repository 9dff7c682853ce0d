"""From prompts to scored experience, and from experience to micro-batches."""
