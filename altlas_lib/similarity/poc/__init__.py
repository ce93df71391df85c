"""Chapter 20's proof of concept: the specification's ways to the same answer, validated, timed and set side by side."""
