"""Rewriting of the user's source: what computes asks a recorder, and everything else stays what it is.

    y = x @ w + b[i]        y = add(matmul(x, w), getitem(b, i))
    z = library.f(y, n=3)   z = wrap_call(library.f)(y, n=3)
    k = i * 3               k = i * 3 if id(type(i)) in plain else mul(i, 3)

The recorder's functions are constants of the new code objects, in which marks stand for them at first: no name is added to the
program, and cells, `super()`, private names and line numbers are the compiler's, as before. Python's order of evaluation is
kept, and every expression is evaluated once. The one trace that a program could find is the local variable `@entered`.
"""

import ast
import copy
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any

from ..run.runnable import FunctionKey

_MARK = "\0recorder "  # begins the constants that the recorder's functions take the place of
_ENTERED = "@entered"  # a local variable that no program can name
_OPERATORS = {
    **{ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.MatMult: "matmul", ast.Div: "truediv", ast.FloorDiv: "floordiv"},
    **{ast.Mod: "mod", ast.Pow: "pow", ast.LShift: "lshift", ast.RShift: "rshift"},
    **{ast.BitOr: "or_", ast.BitXor: "xor", ast.BitAnd: "and_", ast.USub: "neg", ast.UAdd: "pos", ast.Invert: "invert"},
    **{ast.Lt: "lt", ast.LtE: "le", ast.Eq: "eq", ast.NotEq: "ne", ast.Gt: "gt", ast.GtE: "ge"},
}
# Calls of these names compute nothing on arrays; leaving them alone saves time and nothing else.
_PASS_BY = {"isinstance", "issubclass", "len", "type", "range", "super", "hasattr", "getattr", "setattr", "ord", "chr", "id"}
_TAKE_VALUES = {"int", "float", "bool", "complex", "str", "repr", "print", "format"}  # on the host
_COMPILES = re.compile(r"\b(n?jit|vectorize|guvectorize|stencil|cfunc|overload\w*|compile)\b")  # decorators that read bytecode
_LOOKS_AT_LOCALS = {"locals", "vars", "dir", "eval", "exec"}


class _Rewriter(ast.NodeTransformer):
    """Puts marks where the recorder shall be asked. Locations stay, so that tracebacks do.

    Args:
        check_port: also where a value's truth or text is taken, or a number is made of it.
    """

    def __init__(self, *, check_port: bool):
        self._timed = False  # the function's time is taken: it holds `_ENTERED`
        self._guarded = False  # inside of an expression whose names are looked at already
        self._check_port = check_port
        self._left_alone = _PASS_BY | _LOOKS_AT_LOCALS | (set() if check_port else _TAKE_VALUES)

    def ask(self, name: str, *arguments: ast.expr, at: ast.AST) -> ast.Call:
        return ast.copy_location(ast.Call(ast.Constant(_MARK + name), list(arguments), []), at)

    def _unless_plain(self, node: ast.expr, names: Iterable[ast.Name], asked: ast.expr) -> ast.expr:
        """`node` where it is about plain values only: a look at a type is quicker than a call."""
        tests = [self._is_plain(name) for name in {name.id: name for name in names}.values()]
        return ast.IfExp(ast.BoolOp(ast.And(), tests) if len(tests) > 1 else tests[0], node, asked)

    def _is_plain(self, name: ast.Name) -> ast.Compare:
        kind = self.ask("id", self.ask("type", name, at=name), at=name)
        return ast.copy_location(ast.Compare(kind, [ast.In()], [ast.Constant(f"{_MARK}plain")]), name)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id in self._left_alone):
            node.func = self.ask("wrap_call", node.func, at=node.func)
        return node

    def visit_BinOp(self, node: ast.BinOp | ast.UnaryOp | ast.Compare) -> ast.AST:
        """Operators; of names and constants alone, a whole expression of them at once."""
        leaves = None if self._guarded else _leaves(node)
        names = [leaf for leaf in leaves or () if isinstance(leaf, ast.Name)]
        if leaves and not names:
            return node  # the compiler computes it
        if names:
            self._guarded = True
            asked = self.visit(copy.deepcopy(node))
            self._guarded = False
            return ast.copy_location(self._unless_plain(node, names, asked), node)
        self.generic_visit(node)
        match node:
            case ast.UnaryOp(ast.Not(), operand):
                node.operand = self._truth(operand)
                return node
            case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]) if type(op) in _OPERATORS:
                return self.ask(f"binary {_OPERATORS[type(op)]}", left, right, at=node)
            case ast.UnaryOp(op, operand):
                return self.ask(f"unary {_OPERATORS[type(op)]}", operand, at=node)
        return node  # `in`, `is`, and chains of comparisons, which take the truth of each: no arrays there

    visit_UnaryOp = visit_Compare = visit_BinOp

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        asked = self.ask("getitem", node.value, self._index(node.slice), at=node)
        match node:
            case ast.Subscript(ast.Name() as name, ast.Name() | ast.Constant()):
                return ast.copy_location(self._unless_plain(node, [name], asked), node)
        return asked

    def _index(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Slice):
            return self.ask("slice", *(part or ast.Constant(None) for part in (node.lower, node.upper, node.step)), at=node)
        if isinstance(node, ast.Tuple):
            node.elts = [self._index(element) for element in node.elts]
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        match node.targets:
            case [ast.Subscript(value=container, slice=index)]:  # Python evaluates the value first, then these
                return _statement(self.ask("setitem", node.value, container, self._index(index), at=node))
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        node.value, target = self.visit(node.value), self.generic_visit(node.target)
        name = f"i{_OPERATORS[type(node.op)].rstrip('_')}"
        match target:
            case ast.Name(variable):  # `s += t` of texts is quick only as it stands
                old = ast.copy_location(ast.Name(variable, ast.Load()), target)
                new = ast.Assign([target], self.ask(f"binary {name}", old, node.value, at=node))
                return ast.copy_location(ast.If(self._is_plain(old), [node], [ast.copy_location(new, node)]), node)
            case ast.Attribute(attr=attribute) if attribute.startswith("__"):  # its name is mangled
                return node
            case ast.Attribute(value=container, attr=attribute):
                how, key = "attribute", ast.Constant(attribute)
            case ast.Subscript(value=container, slice=index):
                how, key = "item", self._index(index)
        # The container and the old value come before the new one is evaluated, and each of them once.
        loaded = ast.Starred(self.ask(f"load_{how}", container, key, at=target), ast.Load())
        return _statement(self.ask(f"store_{how} {name}", ast.copy_location(loaded, target), node.value, at=node))

    def visit_For(self, node: ast.For | ast.comprehension) -> ast.AST:
        self.generic_visit(node)
        if not getattr(node, "is_async", False):
            node.iter = self.ask("iterate", node.iter, at=node.iter)
        if isinstance(node, ast.comprehension):
            node.ifs = [self._truth(test) for test in node.ifs]
        return node

    visit_comprehension = visit_For

    # Where a port would move a value to the host.

    def _truth(self, test: ast.expr) -> ast.expr:
        """A visited expression whose truth is taken."""
        match test:
            case ast.BoolOp():  # of its other values `visit_BoolOp` has taken it
                test.values[-1] = self._truth(test.values[-1])
                return test
            case ast.UnaryOp(ast.Not()) | ast.Constant():
                return test
        return self.ask("take_value truth of an array", test, at=test) if self._check_port else test

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        node.values[:-1] = [self._truth(value) for value in node.values[:-1]]
        return node

    def visit_If(self, node: ast.If | ast.While | ast.IfExp | ast.Assert) -> ast.AST:
        self.generic_visit(node)
        node.test = self._truth(node.test)
        return node

    visit_While = visit_IfExp = visit_Assert = visit_If

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        self.generic_visit(node)
        if self._check_port:
            node.value = self.ask("take_value text of an array", node.value, at=node.value)
        return node

    # Functions.

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        """The body only: decorators, defaults and annotations are evaluated once, in another scope."""
        if any(_COMPILES.search(ast.unparse(decorator)) for decorator in node.decorator_list):
            return node
        outer, own = self._timed, list(_own_nodes(node.body))
        names = {inner.id for inner in own if isinstance(inner, ast.Name)}
        self._timed = not (isinstance(node, ast.AsyncFunctionDef) or _suspends(own) or names & _LOOKS_AT_LOCALS)
        first, start = node.body[0], 1 if ast.get_docstring(node, clean=False) is not None else 0
        body = self.generic_visit(ast.Module(node.body[start:], [])).body
        enter = self.ask("enter", _parameters(node.args), at=first)
        if self._timed:
            leave = self.ask("leave", ast.Name(_ENTERED, ast.Load()), ast.Constant(None), at=node.body[-1])
            entered = ast.copy_location(ast.Assign([ast.Name(_ENTERED, ast.Store())], enter), first)
            node.body[start:] = [entered, *body, _statement(leave)]
        else:
            node.body[start:] = [_statement(enter), *body]
        self._timed = outer
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        if not _suspends(_own_nodes([node.body])):
            enter = self.ask("enter", _parameters(node.args), at=node.body)
            node.body = self.ask("leave", enter, self.visit(node.body), at=node.body)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        value = node.value or ast.copy_location(ast.Constant(None), node)
        if self._timed:
            node.value = self.ask("leave", ast.Name(_ENTERED, ast.Load()), value, at=value)
        elif node.value:
            node.value = self.ask("give", value, at=value)
        return node

    def visit_Yield(self, node: ast.Yield) -> ast.AST:
        self.generic_visit(node)
        if node.value:
            node.value = self.ask("give", node.value, at=node.value)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.generic_visit(node)
        node.body.insert(0, _statement(self.ask("clean", at=node.body[0])))
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node


def _statement(value: ast.expr) -> ast.Expr:
    return ast.copy_location(ast.Expr(value), value)


def _leaves(node: ast.expr) -> list[ast.expr] | None:
    """The names and constants of an arithmetic expression; None if there is anything else in it."""
    match node:
        case ast.Name() | ast.Constant(int() | float() | complex()):
            return [node]
        case ast.BinOp(left, _, right) | ast.Compare(left, [_], [right]):
            sides = _leaves(left), _leaves(right)
            return None if None in sides else sides[0] + sides[1]
        case ast.UnaryOp(op, operand) if not isinstance(op, ast.Not):
            return _leaves(operand)
    return None


def _own_nodes(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """What a function's body holds, without the functions and classes in it."""
    stack = list(body)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            stack += ast.iter_child_nodes(node)


def _suspends(nodes: Iterable[ast.AST]) -> bool:
    return any(isinstance(node, ast.Yield | ast.YieldFrom | ast.Await) for node in nodes)


def _parameters(arguments: ast.arguments) -> ast.Tuple:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return ast.Tuple([ast.Name(argument.arg, ast.Load()) for argument in every if argument], ast.Load())


# Code ------------------------------------------------------------------------------------------------------------------------


def with_marks(source: str, filename: str, *, check_port: bool = False) -> CodeType:
    """A module's code with marks where the recorder shall be asked; `with_recorders` puts it there.

    Raises:
        SyntaxError, ValueError, RecursionError: as `compile` does.
    """
    module = ast.parse(source, filename)
    rewriter = _Rewriter(check_port=check_port)
    rewriter.generic_visit(module)
    start = next((i for i, node in enumerate(module.body) if not _must_come_first(node)), len(module.body))
    enter = rewriter.ask("enter", ast.Tuple([], ast.Load()), at=ast.Pass(lineno=1, col_offset=0))
    module.body.insert(start, ast.Expr(enter))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # calls of constants; and what the plain compilation has warned of already
        return compile(ast.fix_missing_locations(module), filename, "exec", dont_inherit=True)


def _must_come_first(node: ast.stmt) -> bool:
    match node:
        case ast.Expr(ast.Constant(str())) | ast.ImportFrom(module="__future__"):
            return True
    return False


def with_recorders(
    plain: CodeType, marked: CodeType, recorder_for: Callable[[FunctionKey], Any | None]
) -> Iterator[tuple[CodeType, CodeType]]:
    """Each code object of a module and what takes its place: marked code with the function's recorder in place of the marks.

    Args:
        plain, marked: from the same source, without marks and with them.
        recorder_for: makes the recorder of a function, which its comprehensions share; its method `function(mark)` gives what
            stands for each mark. None: the function stays as it is, but for recorded ones that are defined in it.

    Yields:
        inner code objects before those that hold them, the module's last.
    """
    recorders: dict[FunctionKey, Any] = {}

    def pairs(plain: CodeType, marked: CodeType, recorder: Any) -> Iterator[tuple[CodeType, CodeType]]:
        key = FunctionKey.of(plain)
        if not plain.co_name.startswith("<") or plain.co_name in ("<module>", "<lambda>"):
            if key not in recorders:
                recorders[key] = recorder_for(key)
            recorder = recorders[key]
        twin_of = {}
        rest = [const for const in marked.co_consts if isinstance(const, CodeType)]
        for inner in plain.co_consts:
            if isinstance(inner, CodeType):
                i = next(i for i, other in enumerate(rest) if FunctionKey.of(other) == FunctionKey.of(inner))
                other = rest.pop(i)
                *found, (_, twin) = pairs(inner, other, recorder)
                yield from (*found, (inner, twin))
                twin_of[id(inner if recorder is None else other)] = twin
        yield plain, _replaced(plain, twin_of, recorder) if recorder is None else _replaced(marked, twin_of, recorder)

    return pairs(plain, marked, None)


def _replaced(code: CodeType, twin_of: dict[int, CodeType], recorder: Any) -> CodeType:
    """`code` with other inner code, by the id of what stands there, and with the recorder's functions in place of marks."""
    consts = [
        recorder.function(const.removeprefix(_MARK))
        if isinstance(const, str) and const.startswith(_MARK)
        else twin_of.get(id(const), const)
        for const in code.co_consts
    ]
    return code.replace(co_consts=tuple(consts))
