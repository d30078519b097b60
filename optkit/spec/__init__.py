"""What a recipe may write, section by section: its text, its typed keys, its JSON Schema. Opens no model."""
