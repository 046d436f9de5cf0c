"""sf-export: checkpoint to verified device bundle."""
