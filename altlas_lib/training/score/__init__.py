"""What a trained model is worth: its scores beside what needs no model."""
