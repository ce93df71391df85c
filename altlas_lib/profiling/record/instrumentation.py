"""Rewriting of the user's source: what computes in the functions asked for goes to a recorder, the rest stays what it is.

    y = x @ w + b[i]        y = operate(add, operate(matmul, x, w), index(b)[i])
    z = library.f(y, n=3)   z = wrap_call(library.f)(y, n=3)

The recorder's functions are constants of the new code objects, in which marks stand for them at first: no name is added to the
program, and cells, `super()`, private names and line numbers are the compiler's, as before. Python's order of evaluation is
kept, and every expression is evaluated once.
"""

import ast
import linecache
import operator
import re
import warnings
from collections.abc import Callable, Collection, Iterable
from types import CodeType

from ..run.targets import FunctionKey

_MARK = "\0recorder "  # begins the constants that the recorder's functions take the place of
_OPERATORS = {  # those whose method is not called as the syntax tree calls them
    **{"Mult": "mul", "Div": "truediv", "BitOr": "or", "BitXor": "xor", "BitAnd": "and", "USub": "neg", "UAdd": "pos"},
    **{"MatMult": "matmul", "LtE": "le", "NotEq": "ne", "GtE": "ge"},
}
_COMPILES = re.compile(r"\b(n?jit|vectorize|guvectorize|stencil|cfunc|overload\w*|compile)\b")  # decorators that read bytecode
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Module)


class _Rewriter(ast.NodeTransformer):
    """Puts marks where the recorder shall be asked. Locations stay, so that tracebacks do."""

    def __init__(self, functions: Collection[FunctionKey] | None, check_port: bool):
        self._functions = functions and {(key.line, key.name.rpartition(".")[2]) for key in functions}
        self._check_port = check_port
        self._is_recorded = False  # the function that is being visited

    def ask(self, name: str, *arguments: ast.expr, at: ast.AST) -> ast.Call:
        return ast.copy_location(ast.Call(_mark(name), list(arguments), []), at)

    def visit(self, node: ast.AST) -> ast.AST:
        return super().visit(node) if self._is_recorded or isinstance(node, _SCOPES) else self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Its parts; and where Python asks a value for its truth, a port would move that to the host."""
        super().generic_visit(node)
        if self._check_port and self._is_recorded:
            match node:
                case ast.If() | ast.While() | ast.IfExp() | ast.Assert():
                    node.test = self._truth(node.test)
                case ast.UnaryOp(ast.Not()):
                    node.operand = self._truth(node.operand)
                case ast.BoolOp():
                    node.values[:-1] = map(self._truth, node.values[:-1])
                case ast.comprehension():
                    node.ifs[:] = map(self._truth, node.ifs)
        return node

    def _truth(self, test: ast.expr) -> ast.expr:
        return self.ask("take_value", ast.Constant("truth of an array"), test, at=test)

    # Functions.

    def visit_FunctionDef(self, node: ast.AST) -> ast.AST:
        """Any scope, its body only: decorators, defaults and annotations are evaluated once, in another scope."""
        decorators = getattr(node, "decorator_list", [])
        if any(_COMPILES.search(ast.unparse(each)) for each in decorators):
            return node
        name = getattr(node, "name", f"<{type(node).__name__.lower()}>")
        line = min(getattr(each, "lineno", 1) for each in (node, *decorators))
        is_asked = self._functions is None or (line, name) in self._functions
        outer, self._is_recorded = self._is_recorded, is_asked and not isinstance(node, ast.ClassDef)
        every = ast.iter_child_nodes(node.args) if hasattr(node, "args") else ()
        names = [ast.Name(each.arg, ast.Load()) for each in every if isinstance(each, ast.arg)]
        enter = ast.Call(_mark("enter"), [ast.Tuple(names, ast.Load())], [])
        is_lambda = isinstance(node, ast.Lambda)
        body = [self.visit(each) for each in ([node.body] if is_lambda else node.body)]
        if self._is_recorded and is_lambda:
            leave = self.ask("leave", body[0], at=body[0])
            body = [ast.Subscript(ast.Tuple([enter, leave], ast.Load()), ast.Constant(1), ast.Load())]
        elif self._is_recorded:
            start = 1 if ast.get_docstring(node, clean=False) is not None else 0
            while body[start:] and isinstance(body[start], ast.ImportFrom):  # from __future__
                start += 1
            body = [*body[:start], ast.Expr(enter), *body[start:], ast.Expr(ast.Call(_mark("leave"), [ast.Constant(None)], []))]
        node.body = body[0] if is_lambda else body
        self._is_recorded = outer
        return node

    visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = visit_Module = visit_FunctionDef

    def visit_Return(self, node: ast.Return | ast.Yield) -> ast.AST:
        self.generic_visit(node)
        node.value = self.ask("leave", node.value or ast.Constant(None), at=node.value or node)
        return node

    visit_Yield = visit_Return

    # Calls, operators, indexing.

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.func = self.ask("wrap_call", node.func, at=node.func)
        return node

    def visit_BinOp(self, node: ast.BinOp | ast.UnaryOp | ast.Compare) -> ast.AST:
        self.generic_visit(node)
        match node:
            case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
                operands = [left, right]
            case ast.UnaryOp(op, operand) if not isinstance(op, ast.Not):
                operands = [operand]
            case _:  # chains of comparisons take the truth of each: no arrays there
                return node
        if not hasattr(operator, name := _operator(op)) or all(isinstance(each, ast.Constant) for each in operands):
            return node  # `in`, `is`; what the compiler computes
        return self.ask("operate", _mark(name), *operands, at=node)

    visit_UnaryOp = visit_Compare = visit_BinOp

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Read or written, in whatever statement; Python keeps its order of evaluation."""
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Del):
            node.value = self.ask("index", node.value, at=node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name):
            return node
        old = ast.copy_location(ast.Name(node.target.id, ast.Load()), node.target)
        new = ast.Assign([node.target], self.ask("operate", _mark(_operator(node.op, "i")), old, node.value, at=node))
        # `s += t` of texts is quick only as it stands.
        return ast.copy_location(ast.If(self.ask("is_plain", old, at=node), [node], [new]), node)

    def visit_For(self, node: ast.For | ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        if not getattr(node, "is_async", False):
            node.iter = self.ask("operate", _mark("iter"), node.iter, at=node.iter)
        return node

    visit_comprehension = visit_For


def _mark(name: str) -> ast.Constant:
    return ast.Constant(_MARK + name)


def _operator(op: ast.AST, prefix: str = "") -> str:
    kind = type(op).__name__
    return f"__{prefix}{_OPERATORS.get(kind, kind.lower())}__"


def code_with_recorders(
    files: Iterable[str], functions: Collection[FunctionKey] | None, check_port: bool, recorder: Callable, notes: list[str]
) -> dict[tuple[str, CodeType], CodeType]:
    """File and code of each function in source files -> its code in which the functions asked for ask their recorders.

    Args:
        functions: None: all.
        check_port: also where a value's truth is taken.
        recorder: gives that of a function by its key; comprehensions share it. `function(mark)` gives what stands for a mark.
        notes: get the files that could not be rewritten.
    """
    twins: dict[tuple[str, CodeType], CodeType] = {}  # by file too: equal code may stand in two of them
    for file in files:
        linecache.checkcache(file)
        source = "".join(linecache.getlines(file))
        try:
            module = _Rewriter(functions, check_port).visit(ast.parse(source, file))
            with warnings.catch_warnings(action="ignore"):  # calls of constants; of the rest Python has warned already
                marked = compile(ast.fix_missing_locations(module), file, "exec", dont_inherit=True)
            plain = compile(source, file, "exec", dont_inherit=True)
            _add_twins(twins, plain, marked, FunctionKey.of(marked), recorder)
        except Exception as error:  # deeper than the parser goes: the functions run as they are
            if file.endswith(".py") or not isinstance(error, SyntaxError):  # else a template, whose engine made code of it
                notes.append(f"calls in {file} were not seen: {type(error).__name__}: {error}")
    return twins


def _add_twins(twins: dict, plain: CodeType, marked: CodeType, key: FunctionKey, recorder: Callable) -> CodeType:
    """Code and all that is defined in it, as compiled and with marks: what the marks stand for takes their place."""
    if not marked.co_name.startswith("<") or marked.co_name == "<lambda>":
        key = FunctionKey.of(marked)
    consts, inner = [], (each for each in plain.co_consts if isinstance(each, CodeType))
    for const in marked.co_consts:
        if isinstance(const, CodeType):
            const = _add_twins(twins, next(inner), const, key, recorder)
        elif isinstance(const, str) and const.startswith(_MARK):
            const = recorder(key).function(const.removeprefix(_MARK))
        consts.append(const)
    twins[plain.co_filename, plain] = marked.replace(co_consts=tuple(consts))
    return twins[plain.co_filename, plain]
