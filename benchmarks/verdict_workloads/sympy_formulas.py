"""Formulas in SymPy."""

import sympy

X = sympy.Symbol("x")


def closed_forms_input(n: int = 9) -> list[sympy.Expr]:
    return [sympy.expand((X + 1) ** i * (X - 2) ** 2) / (X**2 + i) for i in range(1, n + 1)]


def closed_forms(formulas: list[sympy.Expr]) -> list[sympy.Expr]:
    sympy.core.cache.clear_cache()  # what an earlier run found would be the same
    return [simplest(formula) for formula in formulas]


def simplest(formula: sympy.Expr) -> sympy.Expr:
    return sympy.factor(sympy.together(sympy.diff(formula, X, 2)))
