"""What is trained: the specification's multi-scale model, its windows and features, and how a step is cut and made to fit."""
