"""Reference pictures of a person: what the generator sees, and what is copied."""
