"""Models of other projects: Hugging Face, lit-gpt, and conversion between formats."""
