"""The two services of the plan, reduced to the steps that cost, as such services are written: plain Python and NumPy.

Chapter 10 profiles them by default. Each module has `load_input(...)`, which is not timed, and `run(input)`, which is:
`segmentation` (texts -> segments -> vectors -> similar pairs) and `inference` (request -> features -> model -> answer).
"""
