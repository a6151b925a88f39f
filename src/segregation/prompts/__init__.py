"""Prompts with their targets: needles in haystacks, and choice questions."""
