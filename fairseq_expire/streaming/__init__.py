"""A corpus as rows and blocks, the memories of a pass over it, memory files, and prompts."""
