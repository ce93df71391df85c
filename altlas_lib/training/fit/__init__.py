"""Training that equals the big batch, continues bit for bit after a kill, and retreats where memory runs out."""
